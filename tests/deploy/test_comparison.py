import pytest
import torch
from detectron2.structures import Boxes, Instances

from focal_retina.deploy.comparison import compare, sample_images


class Fixed:
    """A predictor that finds the same in every image."""

    def __init__(self, boxes, scores, classes):
        self.found = Instances(
            (100, 2000),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.tensor(scores),
            pred_classes=torch.tensor(classes),
        )

    def predict(self, images):
        return [self.found for _ in images]


BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 1500.0, 40.0]]
REFERENCE = Fixed(BOXES, [0.9, 0.8], [0, 1])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "unmatched"),
    [
        (BOXES[::-1], [0.8, 0.9], [1, 0], 0),  # near ties may change places
        (BOXES, [0.9005, 0.8], [0, 1], 0),
        (BOXES, [0.902, 0.8], [0, 1], 2),
        (BOXES, [0.9, 0.8], [1, 1], 2),
        (BOXES[:1], [0.9], [0], 1),
        ([[0.0, 0.0, 10.0, 10.0009], BOXES[1]], [0.9, 0.8], [0, 1], 0),
        ([[0.0, 0.0, 10.0, 10.01], BOXES[1]], [0.9, 0.8], [0, 1], 2),
        ([BOXES[0], [20.0, 0.0, 1500.01, 40.0]], [0.9, 0.8], [0, 1], 0),  # fp32 at 1,500
        ([BOXES[0], [20.0, 0.0, 1500.05, 40.0]], [0.9, 0.8], [0, 1], 2),
    ],
)
def test_counterparts(boxes, scores, classes, unmatched):
    agreement = compare(Fixed(boxes, scores, classes), REFERENCE, [None] * 3)
    assert (agreement.images, agreement.detections) == (3, 6)
    assert agreement.unmatched == 3 * unmatched


def test_errors_are_the_largest_of_counterparts():
    shifted = [[0.0, 0.0, 10.0, 10.0005], BOXES[1]]
    agreement = compare(Fixed(shifted, [0.9, 0.8003], [0, 1]), REFERENCE, [None])
    assert agreement.box_error == pytest.approx(5e-4, rel=1e-2)
    assert agreement.score_error == pytest.approx(3e-4, rel=1e-2)


def test_nothing_to_sample():
    with pytest.raises(ValueError, match=r"set DATASETS.TEST"):
        sample_images([], 3)
