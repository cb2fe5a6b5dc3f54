"""Box regression losses of the P positive anchors.

Values and gradients are those of Detectron2's ``_dense_box_regression_loss``, which computes
targets for all anchors; here, only for the positives.
"""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from ..config import check_choice

# pred_deltas (P, 4), the head's outputs; anchors and their gt_boxes (P, 4), XYXY in pixels, to the
# fp32 loss of each anchor (P,), summed over its coordinates
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class SmoothL1BoxLoss:
    """Smooth L1 on the encoded deltas (paper section 4; ``beta=0`` is L1, Detectron2's zoo)."""

    def __init__(self, *, box2box_transform: Box2BoxTransform, beta: float):
        self.box2box_transform = box2box_transform
        self.beta = beta

    def __call__(self, pred_deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        # Box2BoxTransform.get_deltas without its assertion, which waits for a GPU
        sizes, gt_sizes = anchors[:, 2:] - anchors[:, :2], gt_boxes[:, 2:] - gt_boxes[:, :2]
        dx, dy = (gt_boxes[:, :2] + 0.5 * gt_sizes - (anchors[:, :2] + 0.5 * sizes)).unbind(1)
        dw, dh = torch.log(gt_sizes / sizes).unbind(1)
        wx, wy, ww, wh = self.box2box_transform.weights
        parts = wx * dx / sizes[:, 0], wy * dy / sizes[:, 1], ww * dw, wh * dh
        gt_deltas = torch.stack(parts, dim=1)
        return smooth_l1_loss(pred_deltas.float(), gt_deltas, beta=self.beta).sum(dim=1)


class IoUBoxLoss:
    """A loss on decoded boxes: generalized, distance or complete IoU."""

    def __init__(self, *, box2box_transform: Box2BoxTransform, iou_loss: Callable[..., Tensor]):
        self.box2box_transform = box2box_transform
        self.iou_loss = iou_loss

    def __call__(self, pred_deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        pred_boxes = self.box2box_transform.apply_deltas(pred_deltas, anchors)
        return self.iou_loss(pred_boxes, gt_boxes, reduction="none")


_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def build_box_loss(cfg: CfgNode, box2box_transform: Box2BoxTransform) -> BoxLoss:
    """Build what ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE`` names: smooth_l1, giou, diou or ciou."""
    name = cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE
    if name in _IOU_LOSSES:
        return IoUBoxLoss(box2box_transform=box2box_transform, iou_loss=_IOU_LOSSES[name])
    check_choice("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", name, ["smooth_l1", *_IOU_LOSSES])
    beta = cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA
    return SmoothL1BoxLoss(box2box_transform=box2box_transform, beta=beta)
