from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances

from focal_retina.deploy.comparison import compare

BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 1500.0, 40.0]]


def fixed(boxes=BOXES, scores=(0.9, 0.8), classes=(0, 1)):
    """A predictor that finds the same in every image."""
    fields = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes)}
    found = Instances((100, 2000), pred_boxes=Boxes(torch.tensor(boxes)), **fields)
    return SimpleNamespace(predict=lambda images: [found] * len(images))


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [
        (fixed(BOXES[::-1], [0.8, 0.9], [1, 0]), 0),  # near ties may change places
        (fixed(scores=[0.9005, 0.8]), 0),
        (fixed(scores=[0.902, 0.8]), 2),
        (fixed(classes=[1, 1]), 2),
        (fixed(BOXES[:1], [0.9], [0]), 1),
        (fixed([[0.0, 0.0, 10.0, 10.0009], BOXES[1]]), 0),
        (fixed([[0.0, 0.0, 10.0, 10.01], BOXES[1]]), 2),
        (fixed([BOXES[0], [20.0, 0.0, 1500.01, 40.0]]), 0),  # fp32 at 1,500
        (fixed([BOXES[0], [20.0, 0.0, 1500.05, 40.0]]), 2),
    ],
)
def test_counterparts(found, unmatched):
    agreement = compare(found, fixed(), [None] * 3)
    assert (agreement.images, agreement.detections) == (3, 6)
    assert agreement.unmatched == 3 * unmatched


def test_errors_are_the_largest_of_counterparts():
    shifted = [[0.0, 0.0, 10.0, 10.0005], BOXES[1]]
    agreement = compare(fixed(shifted, [0.9, 0.8003]), fixed(), [None])
    assert (agreement.box_error, agreement.score_error) == pytest.approx((5e-4, 3e-4), rel=1e-2)
