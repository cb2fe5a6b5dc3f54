"""The head's prior initialization."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers import default_cfg

from focal_retina.modeling import build_dense_head


@pytest.mark.parametrize(
    "opts, score",
    [
        ((), 0.01),
        (("MODEL.RETINANET.PRIOR_PROB", 0.2), 0.2),
        (("MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT", False), 0.5),
    ],
)
def test_every_anchor_starts_at_the_prior(opts, score):
    shapes = [ShapeSpec(channels=8, stride=s) for s in (8, 16, 32, 64, 128)]
    head = build_dense_head(default_cfg(*opts), shapes)
    logits, _ = head([torch.zeros(1, 8, 2, 2) for _ in shapes])
    scores = torch.cat(logits).sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, score))
