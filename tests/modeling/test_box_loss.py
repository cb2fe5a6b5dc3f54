"""Box losses of the positives against Detectron2's, which looks at every anchor."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes
from helpers import default_cfg

from focal_retina.modeling.box_loss import build_box_loss

TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def build(loss_type, beta=0.0):
    cfg = default_cfg("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", loss_type)
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = beta
    return build_box_loss(cfg, TRANSFORM)


def random_boxes(count, generator):
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 30], dim=1)


@pytest.mark.parametrize(
    "loss_type, beta",
    [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0), ("diou", 0.0), ("ciou", 0.0)],
)
def test_value_and_gradient_equal_detectron2s(loss_type, beta):
    generator = torch.Generator().manual_seed(0)
    anchors, gt_boxes = random_boxes(40, generator), random_boxes(40, generator)
    deltas = (torch.randn(1, 40, 4, generator=generator) * 0.3).requires_grad_()
    is_positive = torch.rand(40, generator=generator) < 0.3

    losses = build(loss_type, beta)(
        deltas[0, is_positive], anchors[is_positive], gt_boxes[is_positive]
    )
    (gradient,) = torch.autograd.grad(losses.sum(), deltas)

    expected = _dense_box_regression_loss(
        [Boxes(anchors)], TRANSFORM, [deltas], [gt_boxes], is_positive[None], loss_type, beta
    )
    (expected_gradient,) = torch.autograd.grad(expected, deltas)
    torch.testing.assert_close(losses.sum(), expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "ciou"])
def test_no_positives_give_a_zero_with_a_gradient(loss_type):
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = build(loss_type)(deltas, torch.zeros(0, 4), torch.zeros(0, 4))
    assert loss.sum() == 0
    loss.sum().backward()
    assert deltas.grad is not None


def test_unknown_type_lists_the_known_ones():
    with pytest.raises(ValueError, match="'l3'; it can be smooth_l1, giou, diou, ciou"):
        build("l3")
