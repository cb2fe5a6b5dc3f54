"""Only the anchor labeling, in another model: Detectron2's RetinaNet.

./run train_net.py --import docs/examples/labeling_in_own_model.py --config-file my_config.yaml \\
    MODEL.META_ARCHITECTURE RetinaNetWithExactLabels
"""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet

from focal_retina.modeling import AnchorLabeler


@META_ARCH_REGISTRY.register()
class RetinaNetWithExactLabels(RetinaNet):
    """An object of zero area matches nothing, and memory does not grow with the objects."""

    @configurable
    def __init__(self, *, anchor_labeler, **arguments):
        super().__init__(**arguments)
        self.anchor_labeler = anchor_labeler

    @classmethod
    def from_config(cls, cfg):
        labeler = AnchorLabeler(
            num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
            iou_thresholds=cfg.MODEL.RETINANET.IOU_THRESHOLDS,
            iou_labels=cfg.MODEL.RETINANET.IOU_LABELS,
            promotion="min_iou",  # Detectron's; "any" is Detectron2's
        )
        return {**super().from_config(cfg), "anchor_labeler": labeler}

    def label_anchors(self, anchors, gt_instances):
        labels, matched_idxs = self.anchor_labeler(anchors, gt_instances)
        matched_boxes = [
            gt.gt_boxes.tensor[idxs] if len(gt) else gt.gt_boxes.tensor.new_zeros(len(idxs), 4)
            for gt, idxs in zip(gt_instances, matched_idxs, strict=True)
        ]
        return list(labels), matched_boxes
