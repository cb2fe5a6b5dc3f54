"""The head: prior initialization, and errors."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers import default_cfg

from focal_retina.modeling.head import FocalRetinaNetHead, build_dense_head

SHAPES = [ShapeSpec(channels=8, stride=8), ShapeSpec(channels=8, stride=16)]


def make_head(**options):
    fixed = {"input_shape": SHAPES, "num_classes": 3, "num_anchors": 2, "conv_dims": [8, 8]}
    return FocalRetinaNetHead(**fixed, **options)


def scores(head):
    logits, _ = head([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    return torch.cat([x.flatten() for x in logits]).sigmoid()


@pytest.mark.parametrize("prior_prob, score", [(0.01, 0.01), (0.2, 0.2), (None, 0.5)])
def test_every_anchor_starts_at_the_prior(prior_prob, score):
    torch.testing.assert_close(
        scores(make_head(prior_prob=prior_prob)), torch.full((2 * 3 * 20,), score)
    )


def test_bias_of_the_papers_prior():
    """Section 4.1: b = -log((1 - pi) / pi), -4.5951 at pi = .01."""
    bias = make_head().cls_score.bias
    torch.testing.assert_close(bias, torch.full_like(bias, -4.5951), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prior_init, score", [(True, 0.05), (False, 0.5)])
def test_prior_by_config(prior_init, score):
    prior = ("MODEL.RETINANET.PRIOR_PROB", 0.05, "MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT", prior_init)
    shapes = [ShapeSpec(channels=8, stride=s) for s in (8, 16, 32, 64, 128)]
    head = build_dense_head(default_cfg(*prior), shapes)
    bias = head.cls_score.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, score))
