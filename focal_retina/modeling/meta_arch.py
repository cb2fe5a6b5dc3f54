"""FocalRetinaNet: a batch of images in, losses or detections out.

N images, R_l anchors of level l, K classes, P positive anchors of the batch.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import with_focal_retina_defaults
from ..losses import EmaNormalizer, FocalLoss, build_cls_loss
from ..losses.alpha import count_objects
from ..losses.normalizer import build_loss_normalizer, normalized_loss
from .anchor_labeling import AnchorLabeler, check_ground_truth, padded
from .anchors import paper_anchors
from .backbones import feature_shapes_of
from .box_loss import BoxLoss, SmoothL1BoxLoss, build_box_loss
from .head import DenseHead, build_dense_head
from .patches import to_device
from .postprocess import Candidates, DensePostprocessor
from .predictions import DensePredictions, LabeledPredictions


def class_counts_of(cfg: CfgNode) -> list[int]:
    """Objects of each class in DATASETS.TRAIN."""
    records = chain.from_iterable(map(DatasetCatalog.get, cfg.DATASETS.TRAIN))
    return count_objects(records, cfg.MODEL.RETINANET.NUM_CLASSES)


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(DenseDetector):
    """RetinaNet (Lin et al., ICCV 2017), a drop-in for :class:`detectron2.modeling.RetinaNet`.

    With the default config it has the state dict, losses, gradients and detections of Detectron2's
    model, with two exceptions: an object of zero area, or one that overlaps no anchor, matches
    nothing, and a class outside [0, K) is an error. With several processes the normalizer is that
    of the whole batch, and not each process's own. That holds for yaml and weights. The
    constructor's arguments are its own, so in a LazyConfig take the model of ``configs/lazy``: a
    new ``_target_`` alone won't do.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: DenseHead,
        num_classes: int,
        head_in_features: list[str] | None = None,
        anchor_generator: nn.Module | None = None,
        anchor_labeler: AnchorLabeler | None = None,
        cls_loss: nn.Module | None = None,
        box_loss: BoxLoss | None = None,
        loss_normalizer: nn.Module | None = None,
        postprocessor: DensePostprocessor | None = None,
        num_micro_batches: int = 1,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        """
        Args:
            backbone: Detectron2's backbone interface.
            head: feature maps to per-level logits (N, A x K, H, W) and deltas (N, A x 4, H, W).
            num_classes: K.
            head_in_features: the backbone's feature maps that the head sees, high resolution first;
                default: all.
            anchor_generator: feature maps to per-level Boxes, the same for all images; default:
                the paper's, three scales an octave and three aspect ratios.
            anchor_labeler: anchors and ground truth to labels.
            cls_loss: see :mod:`focal_retina.losses`; default: FL with alpha .25 and gamma 2.
            box_loss: see :mod:`focal_retina.modeling.box_loss`; default: L1.
            loss_normalizer: positives of each image (N,) to the divisor of the losses' sums.
            postprocessor: dense predictions to detections.
            num_micro_batches: into which the network divides a training batch, for less memory.
            pixel_mean, pixel_std: per channel; default: BGR of the ImageNet weights that Detectron2
                converted from Caffe2.
        """
        if not isinstance(head, DenseHead):
            advice = "derive it from focal_retina.modeling.DenseHead"
            raise ValueError(f"the head {type(head).__name__} is no dense head: {advice}")
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        strides = [x.stride for x in feature_shapes_of(backbone, self.head_in_features)]
        transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        self.anchor_generator = anchor_generator or paper_anchors(strides)
        self.anchor_labeler = anchor_labeler or AnchorLabeler(num_classes=num_classes)
        self.cls_loss = cls_loss or FocalLoss()
        self.box_loss = box_loss or SmoothL1BoxLoss(box2box_transform=transform, beta=0.0)
        self.loss_normalizer = loss_normalizer or EmaNormalizer()
        self.postprocessor = postprocessor or DensePostprocessor(box2box_transform=transform)
        self.num_classes = num_classes
        self.num_micro_batches = num_micro_batches
        # Of the head's feature maps; by default, as the backbone makes them.
        self.head_memory_format = torch.preserve_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        cfg = with_focal_retina_defaults(cfg)
        retinanet, options = cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_RETINA
        is_auto = options.CLS_LOSS.CLASS_ALPHA == "auto"
        class_counts = class_counts_of(cfg) if is_auto else None
        # In Detectron2's order, so that one seed gives both models the same initial weights.
        backbone = build_backbone(cfg)
        feature_shapes = feature_shapes_of(backbone, retinanet.IN_FEATURES)
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
                class_agnostic_nms=options.CLASS_AGNOSTIC_NMS,
            ),
            "num_classes": retinanet.NUM_CLASSES,
            "num_micro_batches": cfg.SOLVER.ACCUMULATE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: a dict an image, from Detectron2's mapper: ``image`` (C, H, W); in
                training ``instances`` with ``gt_boxes`` and ``gt_classes``; else ``height`` and
                ``width`` of the output, by default the image's.

        Returns:
            In training ``{"loss_cls": …, "loss_box_reg": …}``, else ``{"instances": Instances}``
            for each image.

        Raises:
            ValueError: a ground-truth class outside [0, K), or a box that is not finite; the
                message names the image.
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            return self.losses(self._micro_batched(images.tensor, batched_inputs))
        results = self.postprocessor(*self.dense_predictions(images.tensor), images.image_sizes)
        return [
            {"instances": detector_postprocess(r, x.get("height", h), x.get("width", w))}
            for r, x, (h, w) in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def _move_to_current_device(self, x: Tensor) -> Tensor:
        return to_device(x, self.device)

    def features(self, images: Tensor) -> list[Tensor]:
        """The head's feature maps, per level (N, C, H_l, W_l), of normalized, padded ``images``
        (N, 3, H, W)."""
        maps = self.backbone(images)
        return [maps[x].to(memory_format=self.head_memory_format) for x in self.head_in_features]

    def anchors(self, features: list[Tensor]) -> list[Boxes]:
        """Per level R_l boxes, of feature maps (N, C, H_l, W_l)."""
        # Detectron2's generator makes tensors on the CPU; their copies would wait for a GPU.
        is_cuda = features[0].is_cuda
        with features[0].device if is_cuda else nullcontext():
            return self.anchor_generator(features)

    def dense_predictions(self, images: Tensor) -> DensePredictions:
        """The predictions for normalized, padded ``images`` (N, 3, H, W)."""
        features = self.features(images)
        return self.by_anchor(features, *self.head(features))

    def by_anchor(
        self, features: list[Tensor], logits: list[Tensor], deltas: list[Tensor]
    ) -> DensePredictions:
        """The head's outputs for its feature maps, in the order of the anchors."""
        outputs = self._transpose_dense_predictions([logits, deltas], [self.num_classes, 4])
        return DensePredictions(self.anchors(features), *outputs)

    def candidates(self, batched_inputs: list[dict]) -> list[Candidates]:
        """Of each image what goes into NMS; boxes are in pixels of ``image``."""
        images = self.preprocess_image(batched_inputs).tensor
        return list(self.postprocessor.candidates(*self.dense_predictions(images)))

    def label_and_predict(self, images: Tensor, batched_inputs: list[dict]) -> LabeledPredictions:
        """What a training step needs of the network, of normalized, padded ``images`` (N, 3, H, W)
        and what :meth:`forward` gets. Labels come first: only positive anchors need box deltas."""
        features = self.features(images)
        anchors = self.anchors(features)
        labels, image_idxs, anchor_idxs, objects, gt_boxes = self.label(anchors, batched_inputs)
        logits, deltas = self.head.predict_positives(features, image_idxs, anchor_idxs, objects)
        logits = [permute_to_N_HWA_K(x, self.num_classes) for x in logits]
        positives = image_idxs, anchor_idxs, deltas, gt_boxes
        return LabeledPredictions(anchors, logits, labels, *positives)

    def _micro_batched(self, images: Tensor, batched_inputs: list[dict]) -> LabeledPredictions:
        """:meth:`label_and_predict` with the memory of one micro-batch. Of all but the last, only
        the outputs stay: the backward pass computes the rest anew, one after the other."""
        size = -(-len(images) // self.num_micro_batches)
        starts = range(0, len(images), size)
        *pieces, last = [(images[i : i + size], batched_inputs[i : i + size]) for i in starts]
        recomputed = partial(checkpoint, self.label_and_predict, use_reentrant=False)
        predictions = [*(recomputed(*x) for x in pieces), self.label_and_predict(*last)]
        return LabeledPredictions.cat(predictions) if pieces else predictions[0]

    def label(self, anchors: list[Boxes], batched_inputs: list[dict]) -> tuple[Tensor, ...]:
        """The labels of R_l anchors a level, the image, anchor and object of each positive, int64
        (P,), and its gt_boxes: see LabeledPredictions. ValueError: as of :meth:`forward`."""
        check_ground_truth(batched_inputs, self.num_classes)
        gt_instances = [x["instances"] for x in batched_inputs]
        labels, matched_idxs = self.anchor_labeler(anchors, gt_instances)
        image_idxs, anchor_idxs = torch.nonzero(self._is_positive(labels), as_tuple=True)
        objects = matched_idxs[image_idxs, anchor_idxs]
        gt_boxes = padded([x.gt_boxes.tensor for x in gt_instances], labels.device)
        return labels, image_idxs, anchor_idxs, objects, gt_boxes[image_idxs, objects]

    def _is_positive(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels != self.num_classes)

    def losses(
        self, predictions: LabeledPredictions, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``, 0-dim fp32, of all or one level of the predictions;
        the default ``normalizer`` is that of ``loss_normalizer``."""
        anchors, logits, labels, image_idxs, anchor_idxs, deltas, gt_boxes = predictions
        if normalizer is None:
            normalizer = self.loss_normalizer(self._is_positive(labels).sum(dim=1))
        boxes = [x.tensor for x in anchors]
        levels = list(labels.split([len(x) for x in boxes], dim=1))
        loss_cls = normalized_loss(self.cls_loss, logits, levels, normalizer, boxes)
        if has_event_storage():
            get_event_storage().put_scalar("num_pos_anchors", len(image_idxs) / len(labels))
        box_losses = self.box_loss(deltas, torch.cat(boxes)[anchor_idxs], gt_boxes)
        loss_box_reg = (box_losses / normalizer.expand(len(labels))[image_idxs]).sum()
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
