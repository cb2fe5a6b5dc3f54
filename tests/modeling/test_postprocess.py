"""Detections from dense predictions, against Detectron2's inference of one image."""

import pytest
import torch
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
    model.box2box_transform = TRANSFORM
    model.test_score_thresh = options["score_thresh"]
    model.test_topk_candidates = options["topk_candidates"]
    model.test_nms_thresh = options["nms_thresh"]
    model.max_detections_per_image = options["max_detections"]
    return model.inference_single_image(anchors, [x.sigmoid() for x in logits], deltas, (100, 120))


@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(1, 5),
    score_thresh=st.sampled_from([0.0, 0.05, 0.5, 0.999, 1.0]),
    topk_candidates=st.sampled_from([1, 10, 1000]),
    max_detections=st.sampled_from([1, 100]),
)
@settings(deadline=None, max_examples=60)
def test_equals_detectron2(seed, num_classes, score_thresh, topk_candidates, max_detections):
    options = {
        "score_thresh": score_thresh,
        "topk_candidates": topk_candidates,
        "nms_thresh": 0.5,
        "max_detections": max_detections,
    }
    predictions = make_predictions(seed, num_classes)
    expected = detectron2_inference(*predictions, options)
    postprocessor = DensePostprocessor(box2box_transform=TRANSFORM, **options)
    actual = postprocessor.postprocess_image(*predictions, (100, 120))
    assert actual.image_size == expected.image_size
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_threshold_is_exact_around_itself():
    """The margin on the logits lets candidates in, the score decides."""
    anchors = [Boxes(torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49]]))]
    thresh = torch.tensor(0.05, dtype=torch.float64)
    logits = [torch.logit(thresh + torch.tensor([-1e-6, 0, 1e-6])).float()[:, None]]
    postprocessor = DensePostprocessor(box2box_transform=TRANSFORM, score_thresh=0.05)
    kept = postprocessor.postprocess_image(anchors, logits, [torch.zeros(3, 4)], (60, 60))
    expected = (logits[0].sigmoid() > 0.05).sum().item()
    assert len(kept) == expected
    assert kept.pred_boxes.tensor[0].tolist() == [40, 40, 49, 49]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_threshold_loses_a_candidate_of_any_dtype(dtype):
    """Every bf16 logit from -8 to 0, against thresholds all along it."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    logits = bits[(bits >= -8) & (bits <= -0.01)].unique().to(dtype)[:, None]
    corner = torch.arange(len(logits))[:, None] * 20.0
    anchors = [Boxes(torch.cat([corner, corner, corner + 9, corner + 9], dim=1))]
    for score_thresh in torch.linspace(0.0005, 0.49, 200).tolist():
        postprocessor = DensePostprocessor(
            box2box_transform=TRANSFORM,
            score_thresh=score_thresh,
            topk_candidates=len(logits),
            max_detections=len(logits),
        )
        scores, _ = postprocessor._level_candidates(anchors[0], logits, logits.expand(-1, 4))[1:]
        expected = logits.float().sigmoid()
        assert len(scores) == (expected > score_thresh).sum()


@pytest.mark.parametrize("sizes", [(5, 3), (0, 3)])
def test_nothing_above_the_threshold(sizes):
    anchors, logits, deltas = make_predictions(0, 2, sizes)
    postprocessor = DensePostprocessor(box2box_transform=TRANSFORM, score_thresh=0.999999)
    kept = postprocessor.postprocess_image(anchors, [x - 50 for x in logits], deltas, (60, 60))
    assert len(kept) == 0
    assert kept.pred_boxes.tensor.shape == (0, 4)


def test_low_precision_logits_are_scored_in_fp32():
    anchors, logits, deltas = make_predictions(0, 3)
    postprocessor = DensePostprocessor(box2box_transform=TRANSFORM)
    low = [x.bfloat16() for x in logits]
    kept = postprocessor.postprocess_image(anchors, low, deltas, (60, 60))
    wide = postprocessor.postprocess_image(anchors, [x.float() for x in low], deltas, (60, 60))
    assert kept.scores.dtype == torch.float32
    assert torch.equal(kept.scores, wide.scores)
