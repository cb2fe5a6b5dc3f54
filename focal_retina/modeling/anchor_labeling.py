"""Anchors and ground truth in, one label and one matched object per anchor out.

The numbers are those of Detectron2's ``pairwise_iou`` + ``Matcher`` + ``RetinaNet.label_anchors``,
bit for bit, without their matrix of all anchors by all objects.

Shapes: N images, R anchors of all levels, M objects of an image, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .anchor_matching import AllPairs, Blocks, columns_of
from .patches import to_device


@dataclass(kw_only=True, eq=False)
class AnchorLabeler:
    """Assigns each anchor a class, background, or "ignore", by its IoU with the objects.

    An anchor belongs to the object that it overlaps most (the first of equals); the band of that
    IoU decides what it becomes. Then each object's best anchors, ties included, may be promoted to
    positive whatever their band; a promoted anchor keeps the object that *it* overlaps most.

    Unlike in Detectron2, an object without area (width or height ≤ 0), or one that overlaps no
    anchor, matches and promotes nothing (there, one such object makes every anchor positive).
    An image without objects to match is all background. Objects whose optional boolean field
    ``gt_is_crowd`` is set never match, as if the mapper had dropped them, as Detectron2's does.
    """

    num_classes: int  # K; also the label of background
    # Ascending borders of the IoU bands; a band includes its lower border.
    iou_thresholds: Sequence[float] = (0.4, 0.5)
    # What an anchor in each band becomes, one more than there are thresholds: 0 background, -1
    # ignored, 1 positive (not in the lowest band, where an anchor may overlap nothing). The default
    # is the paper's (section 4.1).
    iou_labels: Sequence[int] = (0, -1, 1)
    # Which objects promote their best anchors: "none" (the paper says nothing of promotion),
    # "min_iou" those whose best IoU is at least promotion_min_iou (Detectron, 0.4), "any" all
    # (Detectron2).
    promotion: str = "any"
    promotion_min_iou: float = 0.4
    # Background anchors with at least this fraction of their area inside one crowd box become
    # ignored. None: crowd boxes have no effect.
    crowd_ioa_threshold: float | None = None

    def __post_init__(self) -> None:
        thresholds, labels = list(self.iou_thresholds), list(self.iou_labels)
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; a detector has at least 1 class")
        if not thresholds or thresholds != sorted(thresholds) or not all(x > 0 for x in thresholds):
            raise ValueError(f"iou_thresholds is {thresholds}; give ascending positive numbers")
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1} or labels[0] == 1:
            raise ValueError(
                f"iou_labels is {labels}; give -1, 0 or 1 to each of {len(thresholds) + 1} bands, "
                "and not 1 to the lowest band, whose anchors may overlap nothing"
            )
        # The best anchors of an object are promoted where their IoU reaches this.
        floors = {"none": math.inf, "min_iou": self.promotion_min_iou, "any": 0.0}
        if self.promotion not in floors:
            raise ValueError(f"promotion is {self.promotion!r}; use one of {sorted(floors)}")
        if not 0 <= self.promotion_min_iou <= 1:
            raise ValueError(f"promotion_min_iou is {self.promotion_min_iou}; an IoU is in [0, 1]")
        share = self.crowd_ioa_threshold
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"crowd_ioa_threshold is {share}; use a fraction in (0, 1], or None")
        self.iou_thresholds, self.iou_labels = thresholds, labels
        self.promotion_floor = floors[self.promotion]

    @torch.no_grad()
    def __call__(
        self, anchors: Sequence[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            anchors: a ``Boxes`` per level, R in sum, the same for all images.
            gt_instances: per image ``gt_boxes`` (M, 4), ``gt_classes`` (M,) and optionally
                ``gt_is_crowd`` (M,) bool, on any device, checked by :func:`check_ground_truth`.

        Returns:
            labels, int64 (N, R): -1 ignored, 0…K-1 the class of a positive, K background.
            matched_idxs, int64 (N, R): the index of a positive's object in its image; 0 elsewhere.
        """
        boxes = Boxes.cat(list(anchors)).tensor
        shape, device = (len(gt_instances), len(boxes)), boxes.device
        labels = torch.full(shape, self.num_classes, device=device)
        if labels.numel() == 0 or not any(map(len, gt_instances)):
            return labels, torch.zeros_like(labels)
        objects = columns_of(padded([_boxes(x, is_crowd=False) for x in gt_instances], device))
        pairs = (Blocks if device.type == "cpu" else AllPairs)(columns_of(boxes))
        kinds, matched_idxs = pairs.match(objects, self.kinds, self.promotion_floor)
        # Without objects to match, all is background, whatever the lowest band says.
        kinds.masked_fill_(objects[4].isinf().all(1, keepdim=True), 0)
        is_positive = kinds == 1
        labels.masked_fill_(kinds == -1, -1)
        classes = padded([x.gt_classes for x in gt_instances], device).gather(1, matched_idxs)
        labels = torch.where(is_positive, classes, labels)
        if self.crowd_ioa_threshold is not None and any(x.has("gt_is_crowd") for x in gt_instances):
            crowds = columns_of(padded([_boxes(x, is_crowd=True) for x in gt_instances], device))
            covered = pairs.highest_ioa(crowds) >= self.crowd_ioa_threshold
            labels.masked_fill_(covered & (labels == self.num_classes), -1)
        return labels, matched_idxs.mul_(is_positive)

    def kinds(self, iou: Tensor) -> Tensor:
        """What anchors become by the band of their highest IoU: -1, 0 or 1, int8."""
        kinds = torch.full_like(iou, self.iou_labels[0], dtype=torch.int8)
        for threshold, label in zip(self.iou_thresholds, self.iou_labels[1:], strict=True):
            kinds.masked_fill_(iou >= threshold, label)
        return kinds


def padded(of_images: list[Tensor], device: torch.device) -> Tensor:
    """(N, M, …), with zeros where an image has fewer objects."""
    return to_device(pad_sequence(of_images, batch_first=True), device)


def _boxes(gt: Instances, is_crowd: bool) -> Tensor:
    """(M, 4): the crowds' boxes, or the others'; an empty box stands in for what is left out, since
    selecting would wait for a GPU."""
    boxes = gt.gt_boxes.tensor
    if not gt.has("gt_is_crowd"):
        return torch.zeros_like(boxes) if is_crowd else boxes
    return boxes.masked_fill((gt.gt_is_crowd != is_crowd)[:, None], 0)


def check_ground_truth(batched_inputs: Sequence[dict], num_classes: int) -> None:
    """Check the ``instances`` of a model's inputs, best before they move to the device.

    Raises:
        ValueError: a class outside 0…K-1 (Detectron2 silently takes K for background and -1 for
            "ignore"), or a box with NaN, infinite or absurdly large coordinates.
    """
    gt_instances = [x["instances"] for x in batched_inputs]
    # A NaN or infinite coordinate makes the area NaN or infinite, too: the areas check all four.
    areas = torch.cat([gt.gt_boxes.area() for gt in gt_instances])
    classes = torch.cat([gt.gt_classes for gt in gt_instances])
    if bool((areas.isfinite() & (classes >= 0) & (classes < num_classes)).all()):
        return
    for position, (x, gt) in enumerate(zip(batched_inputs, gt_instances, strict=True)):
        name = x.get("file_name", x.get("image_id", f"image {position} of the batch"))
        for i, (box, label) in enumerate(zip(gt.gt_boxes, gt.gt_classes.tolist(), strict=True)):
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"{name}: object {i} has class {label}, but num_classes is {num_classes}, so "
                    f"classes are 0 to {num_classes - 1}. Correct the annotation, or set "
                    "MODEL.RETINANET.NUM_CLASSES to the number of classes of the data set."
                )
            if not Boxes(box[None]).area().isfinite():
                raise ValueError(
                    f"{name}: object {i} has the box {box.tolist()}, whose area is not a finite "
                    "float32. Correct or remove the annotation, or the transform that made the box."
                )
