"""Detections from dense predictions, against Detectron2's inference of one image."""

import pytest
import torch
import torchvision
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.modeling.postprocess import DensePostprocessor

TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def make_predictions(seed, num_classes, sizes=(60, 20), spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    anchors, logits, deltas = [], [], []
    for count in sizes:
        corner = torch.rand(count, 2, generator=generator) * 80
        extent = torch.rand(count, 2, generator=generator) * 30 + 1
        anchors.append(Boxes(torch.cat([corner, corner + extent], dim=1)))
        logits.append(torch.randn(count, num_classes, generator=generator) * spread - 2)
        deltas.append(torch.randn(count, 4, generator=generator) * 0.2)
    return anchors, logits, deltas


def detectron2_inference(anchors, logits, deltas, options):
    """The stock model's method on a stand-in for the model: it needs these attributes only."""
    model = RetinaNet.__new__(RetinaNet)
    torch.nn.Module.__init__(model)
    vars(model).update({f"test_{name}": value for name, value in options.items()})
    model.max_detections_per_image = options["max_detections"]
    model.box2box_transform = TRANSFORM
    return model.inference_single_image(anchors, [x.sigmoid() for x in logits], deltas, (100, 120))


@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(1, 5),
    options=st.fixed_dictionaries(
        {
            "score_thresh": st.sampled_from([0.0, 0.05, 0.5, 0.999, 1.0]),
            "topk_candidates": st.sampled_from([1, 10, 1000]),
            "nms_thresh": st.sampled_from([0.3, 0.5]),
            "max_detections": st.sampled_from([1, 100]),
        }
    ),
)
def test_equals_detectron2(seed, num_classes, options):
    anchors, logits, deltas = make_predictions(seed, num_classes)
    expected = detectron2_inference(anchors, logits, deltas, options)
    postprocessor = DensePostprocessor(
        box2box_transform=TRANSFORM, **{**options, "score_thresh": 0.9}
    )
    postprocessor.score_thresh = options["score_thresh"]  # as Detectron2's may be set later
    of_batch = [x[None] for x in logits], [x[None] for x in deltas]
    (actual,) = postprocessor(anchors, *of_batch, [(100, 120)])
    assert actual.image_size == expected.image_size
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


@given(seed=st.integers(0, 2**31), nms_thresh=st.sampled_from([0.1, 0.3, 0.5]))
@settings(deadline=None, max_examples=20)
def test_class_agnostic_nms_is_torchvisions_over_all_classes(seed, nms_thresh):
    anchors, logits, deltas = make_predictions(seed, num_classes=4)
    options = {"box2box_transform": TRANSFORM, "nms_thresh": nms_thresh, "max_detections": 10**6}
    postprocessor = DensePostprocessor(**options, class_agnostic_nms=True)
    of_batch = [x[None] for x in logits], [x[None] for x in deltas]
    ((boxes, scores, classes),) = postprocessor.candidates(anchors, *of_batch)
    keep = torchvision.ops.nms(boxes, scores, nms_thresh)
    expected = boxes[keep], scores[keep], classes[keep]
    assert len(keep) < len(DensePostprocessor(**options)(anchors, *of_batch, [(1, 1)])[0])
    (found,) = postprocessor(anchors, *of_batch, [(100, 120)])
    found = found.pred_boxes.tensor, found.scores, found.pred_classes
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, postprocessor.detect_in_batch(anchors, *of_batch), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_threshold_loses_a_candidate_of_any_dtype(dtype):
    """Every bf16 logit from -8 to 0, against thresholds all along it."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    logits = bits[(bits >= -8) & (bits <= -0.01)].unique().to(dtype)[:, None]
    corner = torch.arange(len(logits))[:, None] * 20.0
    anchors = [Boxes(torch.cat([corner, corner, corner + 9, corner + 9], dim=1))]
    deltas = torch.zeros(len(logits), 4)
    for score_thresh in torch.linspace(0.0005, 0.49, 200).tolist():
        postprocessor = DensePostprocessor(
            box2box_transform=TRANSFORM,
            score_thresh=score_thresh,
            topk_candidates=len(logits),
            max_detections=len(logits),
        )
        (kept,) = postprocessor(anchors, [logits[None]], [deltas[None]], [(10**6, 10**6)])
        assert len(kept) == (logits.float().sigmoid() > score_thresh).sum()
        assert kept.scores.dtype == torch.float32
