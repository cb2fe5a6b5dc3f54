"""Only the classification loss, in a dense detector of one's own.

./run train_net.py --import docs/examples/loss_in_own_model.py --config-file my_config.yaml \\
    MODEL.META_ARCHITECTURE MyDetector
"""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import _dense_box_regression_loss

from focal_retina.losses import FocalLoss


@META_ARCH_REGISTRY.register()
class MyDetector(RetinaNet):
    """Stands for any detector with logits per level and one integer label an anchor."""

    @configurable
    def __init__(self, *, cls_loss, **arguments):
        super().__init__(**arguments)
        self.cls_loss = cls_loss

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "cls_loss": FocalLoss(alpha=0.25, gamma=2.0)}

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        labels = torch.stack(gt_labels)  # (N, R): -1 ignored, 0 … K-1 a class, K background
        is_positive = (labels >= 0) & (labels < self.num_classes)
        normalizer = is_positive.sum().clamp(min=1)

        # Lists over levels: no one-hot target, no mask, no concatenation.
        level_labels = list(labels.split([len(level) for level in anchors], dim=1))
        loss_cls, _ = self.cls_loss(pred_logits, level_labels)

        loss_box_reg = _dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, is_positive
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}
