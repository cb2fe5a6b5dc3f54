"""FocalRetinaNet: a batch of images in, losses or detections out.

Shapes: N images, R anchors an image over all L levels, R_l of level l, K classes, P positive
    anchors of the batch.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config import with_focal_retina_defaults
from ..losses import build_cls_loss, build_loss_normalizer, normalized_loss
from .anchor_labeling import AnchorLabeler, check_gt_instances
from .box_loss import BoxLoss, build_box_loss
from .class_counts import count_objects
from .head import build_dense_head
from .level_losses import losses_by_level
from .postprocess import DensePostprocessor
from .visualization import visualize_training

__all__ = ["FocalRetinaNet"]


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(DenseDetector):
    """RetinaNet (Lin et al., ICCV 2017), a drop-in for :class:`detectron2.modeling.RetinaNet`.

    With the default config it has the state dict, losses, gradients and detections of Detectron2's
    model, except where that one is wrong: an object of zero area matches no anchor, and a class
    outside [0, K) is an
        error.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        anchor_labeler: AnchorLabeler,
        cls_loss: nn.Module,
        box_loss: BoxLoss,
        loss_normalizer: nn.Module,
        postprocessor: DensePostprocessor,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone: Detectron2's backbone interface.
            head: feature maps to per-level logits (N, A x K, H, W) and deltas (N, A x 4, H, W).
            head_in_features: the backbone's feature maps that the head sees, high resolution first.
            anchor_generator: feature maps to per-level Boxes, the same for every image of the
                batch.
            anchor_labeler: anchors and ground truth to labels.
            cls_loss: see :mod:`focal_retina.losses`.
            box_loss: see :mod:`focal_retina.modeling.box_loss`.
            loss_normalizer: positives of each image (N,) to what the losses' sums are divided by.
            postprocessor: dense predictions to detections.
            num_classes: K.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``.
            vis_period: iterations between two pictures in the event storage, 0 for none.
            input_format: channel order of the images, for those pictures.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.anchor_labeler = anchor_labeler
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.loss_normalizer = loss_normalizer
        self.postprocessor = postprocessor
        self.num_classes = num_classes
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        cfg = with_focal_retina_defaults(cfg)
        retinanet, options = cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_RETINA
        class_counts = None
        if options.CLS_LOSS.CLASS_ALPHA == "auto":
            class_counts = count_objects(cfg.DATASETS.TRAIN, retinanet.NUM_CLASSES)
        # In Detectron2's order, so that one seed gives both models the same initial weights.
        backbone = build_backbone(cfg)
        backbone_shape = backbone.output_shape()
        feature_shapes = [backbone_shape[f] for f in retinanet.IN_FEATURES]
        box2box_transform = Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS)
        return {
            "backbone": backbone,
            "head": build_dense_head(cfg, feature_shapes),
            "head_in_features": retinanet.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "anchor_labeler": AnchorLabeler(
                num_classes=retinanet.NUM_CLASSES,
                iou_thresholds=retinanet.IOU_THRESHOLDS,
                iou_labels=retinanet.IOU_LABELS,
                promotion=options.LABELING.PROMOTION,
                promotion_min_iou=options.LABELING.PROMOTION_MIN_IOU,
                crowd_ioa_threshold=options.LABELING.CROWD_IOA_THRESH,
            ),
            "cls_loss": build_cls_loss(cfg, class_counts),
            "box_loss": build_box_loss(cfg, box2box_transform),
            "loss_normalizer": build_loss_normalizer(cfg),
            "postprocessor": DensePostprocessor(
                box2box_transform=box2box_transform,
                score_thresh=retinanet.SCORE_THRESH_TEST,
                topk_candidates=retinanet.TOPK_CANDIDATES_TEST,
                nms_thresh=retinanet.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "num_classes": retinanet.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: what Detectron2's mapper makes, a dict an image: ``image`` (C, H, W); in
                training also ``instances`` with ``gt_boxes`` and ``gt_classes``; ``height`` and
                ``width`` of the output.

        Returns:
            In training ``{"loss_cls": …, "loss_box_reg": …}``, else a dict ``{"instances":
            Instances}`` an image.

        Raises:
            ValueError: a ground-truth class outside [0, K) or a box that is not finite; the message
                names the image.
        """
        if self.training:
            gt_instances = [x["instances"] for x in batched_inputs]
            check_gt_instances(
                gt_instances, self.num_classes, [_image_name(x) for x in batched_inputs]
            )

        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[f] for f in self.head_in_features]

        if self.training:
            if self._is_time_to_visualize():
                with torch.no_grad():
                    predictions = self.head(features)
                visualize_training(self, batched_inputs, images, features, predictions)
            return self.forward_training(features, [x.to(self.device) for x in gt_instances])

        results = self.forward_inference(images, features, self.head(features))
        sizes = [
            (x.get("height", h), x.get("width", w))
            for x, (h, w) in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        return [
            {"instances": detector_postprocess(r, *size)}
            for r, size in zip(results, sizes, strict=True)
        ]

    def forward_training(
        self, features: list[Tensor], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Label first: the labels tell where box deltas are needed at all."""
        anchors = self.anchor_generator(features)
        labels, matched_idxs = self.anchor_labeler(anchors, gt_instances)
        image_idxs, anchor_idxs = torch.nonzero(
            (labels >= 0) & (labels != self.num_classes), as_tuple=True
        )
        positives = image_idxs, anchor_idxs
        logits, deltas = self._predict(features, positives, matched_idxs[positives])
        return self.losses(anchors, logits, deltas, labels, positives, matched_idxs, gt_instances)

    def _predict(
        self, features: list[Tensor], positives: tuple[Tensor, Tensor], objects: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Logits (N, R_l, K) per level, and the deltas (P, 4) of positives."""
        if hasattr(self.head, "predict_positives"):
            predictions = self.head.predict_positives(features, *positives, objects)
            if predictions is not None:
                logits, deltas = predictions
                (logits,) = self._transpose_dense_predictions([logits], [self.num_classes])
                return logits, deltas
        logits, dense_deltas = self._transpose_dense_predictions(
            self.head(features), [self.num_classes, 4]
        )
        return logits, cat(dense_deltas, dim=1)[positives]

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return self.postprocessor(
            self.anchor_generator(features), logits, deltas, images.image_sizes
        )

    def losses(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: Tensor,
        labels: Tensor,
        positives: tuple[Tensor, Tensor],
        matched_idxs: Tensor,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level, R_l boxes.
            logits: per level, (N, R_l, K).
            deltas: (P, 4), of the positives.
            labels, matched_idxs: (N, R) int64, see :class:`AnchorLabeler`.
            positives: image and anchor of each positive, int64 (P,) both.
            gt_instances: per image, the objects that ``matched_idxs`` counts.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, 0-dim fp32, each divided by the normalizer.
        """
        image_idxs, anchor_idxs = positives
        normalizer = self.loss_normalizer(image_idxs.bincount(minlength=len(labels)))
        loss_cls = normalized_loss(
            self.cls_loss,
            logits,
            list(labels.split([len(x) for x in anchors], dim=1)),
            normalizer,
            anchors=[x.tensor for x in anchors],
        )

        if has_event_storage():
            get_event_storage().put_scalar("num_pos_anchors", len(image_idxs) / len(labels))
        box_losses = self.box_loss(
            deltas,
            Boxes.cat(anchors).tensor[anchor_idxs],
            _gather_gt_boxes(gt_instances, image_idxs, matched_idxs[positives]),
        )
        loss_box_reg = (box_losses / normalizer.expand(len(labels))[image_idxs]).sum()
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    def losses_by_level(self, batched_inputs: list[dict]) -> list[dict]:
        """Where the losses of a batch come from, see :mod:`.level_losses`."""
        return losses_by_level(self, batched_inputs)

    def _is_time_to_visualize(self) -> bool:
        return (
            self.vis_period > 0
            and has_event_storage()
            and get_event_storage().iter % self.vis_period == 0
        )


def _image_name(x: dict) -> str:
    """What a user can find the image by."""
    return str(x.get("file_name", x.get("image_id", "an image without file_name and image_id")))


def _gather_gt_boxes(
    gt_instances: list[Instances], image_idxs: Tensor, matched_idxs: Tensor
) -> Tensor:
    """Boxes (P, 4) of the objects ``matched_idxs`` (P,) of the images ``image_idxs`` (P,)."""
    counts = torch.tensor([len(x) for x in gt_instances], device=image_idxs.device)
    first = counts.cumsum(0) - counts  # where each image's objects begin in the concatenation
    return Boxes.cat([x.gt_boxes for x in gt_instances]).tensor[first[image_idxs] + matched_idxs]
