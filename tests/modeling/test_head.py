"""The head's prior initialization."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers import default_cfg

from focal_retina.modeling import FocalRetinaNetHead, build_dense_head

SHAPES = [ShapeSpec(channels=8, stride=s) for s in (8, 16, 32, 64, 128)]


@pytest.mark.parametrize("prior_prob, score", [(0.01, 0.01), (0.2, 0.2), (None, 0.5)])
def test_every_anchor_starts_at_the_prior(prior_prob, score):
    options = {"num_classes": 3, "num_anchors": 2, "conv_dims": [8, 8], "prior_prob": prior_prob}
    head = FocalRetinaNetHead(input_shape=SHAPES[:2], **options)
    logits, _ = head([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    scores = torch.cat([x.flatten() for x in logits]).sigmoid()
    torch.testing.assert_close(scores, torch.full((2 * 3 * 20,), score))


@pytest.mark.parametrize(
    "opts, bias",
    [
        ((), -4.5951),  # section 4.1: b = -log((1 - pi) / pi) at pi = .01
        (("MODEL.RETINANET.PRIOR_PROB", 0.05), -2.9444),
        (("MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT", False), 0.0),
    ],
)
def test_prior_by_config(opts, bias):
    actual = build_dense_head(default_cfg(*opts), SHAPES).cls_score.bias
    torch.testing.assert_close(actual, torch.full_like(actual, bias), atol=1e-4, rtol=0)
