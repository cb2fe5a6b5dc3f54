"""How many objects no anchor reaches.

An anchor reaches an object where their IoU is that of a positive (MODEL.RETINANET.IOU_THRESHOLDS);
an object that none reaches is learned from its best anchors only, or, without their promotion, as
background.

No grid is laid out for it. All anchors of one shape lie on a grid, their IoU with an object is a
function of the intersection alone, and that is a product of two overlaps, neither of which grows
with the distance between the centres: the best anchor of each shape is the one whose centre is
nearest in x and nearest in y.

Shapes: M objects, L levels, K classes, B = 3 buckets of size.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from .check import box_faults
from .report import DatasetReport
from .table import AnnotationTable

_logger = logging.getLogger(__name__)

SIZE_BUCKETS = ("small", "medium", "large")
_BUCKET_BORDERS = (32.0**2, 96.0**2)  # COCO's, here of the box's area in the original image
_OBJECTS_AT_ONCE = 8192
_WORTH_A_WARNING = 0.05


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """Where a model's anchors lie, in numbers."""

    strides: np.ndarray  # (L,), pixels of the network's input, ascending
    offset: float  # of the first centre, in strides
    cell_anchors: tuple[np.ndarray, ...]
    """A level's anchors around (0, 0), x1, y1, x2, y2, a row each."""
    size_divisibility: int  # what the backbone pads its input to
    threshold: float  # IoU from which on an anchor is positive


@dataclass(frozen=True, eq=False)
class Coverage:
    """Objects of each class and size, and those that no anchor reaches."""

    threshold: float  # IoU from which on an anchor is positive
    counts: np.ndarray  # int64 (K, B)
    unreached: np.ndarray  # int64 (K, B)

    @property
    def unreached_share(self) -> float:
        """Of all objects; 0 if there are none."""
        return float(self.unreached.sum() / max(1, self.counts.sum()))

    def __str__(self) -> str:
        sums = self.unreached.sum(axis=0), self.counts.sum(axis=0)
        buckets = zip(SIZE_BUCKETS, *sums, strict=True)
        parts = [f"{name} {missed:,} of {total:,}" for name, missed, total in buckets]
        return (
            f"{self.unreached_share:.1%} of the objects reach no anchor at an IoU of "
            f"{self.threshold:g} ({', '.join(parts)})"
        )


def build_anchor_grid(cfg: CfgNode) -> AnchorGrid:
    """The anchors that the model of ``cfg`` has, read off its own anchor generator.

    Raises:
        ValueError: the generator is not Detectron2's DefaultAnchorGenerator, or no band of
            MODEL.RETINANET.IOU_LABELS is positive.
    """
    labels = list(cfg.MODEL.RETINANET.IOU_LABELS)
    if 1 not in labels[1:]:
        raise ValueError(f"MODEL.RETINANET.IOU_LABELS {labels} makes no anchor positive by its IoU")
    with torch.device("meta"):  # only its strides are asked for: no memory, no random numbers
        backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    features = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    generator = build_anchor_generator(cfg, features)
    if not isinstance(generator, DefaultAnchorGenerator):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.NAME {cfg.MODEL.ANCHOR_GENERATOR.NAME}: only upright anchors "
            "on a grid can be measured"
        )
    return AnchorGrid(
        strides=np.array(generator.strides, dtype=np.float64),
        offset=generator.offset,
        cell_anchors=tuple(x.double().numpy() for x in generator.cell_anchors),
        size_divisibility=max(1, backbone.size_divisibility),
        threshold=float(cfg.MODEL.RETINANET.IOU_THRESHOLDS[labels.index(1, 1) - 1]),
    )


def input_size(cfg: CfgNode, *, training: bool) -> tuple[int, int]:
    """Short edge and maximal size of the network's input; the middle one of several short edges."""
    if not training:
        return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    edges = sorted(np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist())
    return edges[len(edges) // 2], cfg.INPUT.MAX_SIZE_TRAIN


def warn_of_unreached_objects(cfg: CfgNode, reports: Iterable[DatasetReport]) -> None:
    """Warn of each training set of which more than 5% of the objects reach no anchor.

    Nothing is measured with an anchor generator of the user's own, or where no IoU makes an anchor
    positive.

    Args:
        cfg: of a RetinaNet.
        reports: of :func:`~focal_retina.dataset_check.check_datasets`.
    """
    reports = [report for report in reports if report.training]
    is_default = cfg.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator"
    if not reports or not is_default or 1 not in cfg.MODEL.RETINANET.IOU_LABELS[1:]:
        return
    grid = build_anchor_grid(cfg)
    for report in reports:
        coverage = measure_coverage(report.table, grid, *input_size(cfg, training=True))
        if coverage.unreached_share > _WORTH_A_WARNING:
            _logger.warning("%s: %s; the data check suggests other anchors", report.name, coverage)


def resized_objects(
    table: AnnotationTable, short_edge: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The usable objects of a data set at the size in which the network sees them.

    The arithmetic is that of Detectron2's ``ResizeShortestEdge``.

    Args:
        table: crowds, and boxes that are faulty or of an unknown class, are left out.
        short_edge: pixels; 0: the images keep their size.
        max_size: pixels of the longer edge at most.

    Returns:
        boxes, float64 (M, 4), x1, y1, x2, y2 after cutting at the image's border; the images'
        sizes (M, 2), width and height; and which annotations they are, int64 (M,).
    """
    sizes = table.sizes_of_images
    faults = box_faults(table.boxes, sizes)
    usable = ~table.is_crowd & (table.class_index >= 0) & (sizes > 0).all(axis=1)
    for kind in ("box_not_finite", "negative_size", "zero_area", "box_outside"):
        usable &= ~faults[kind]
    indices = np.flatnonzero(usable)
    boxes, sizes = table.boxes[indices], sizes[indices]
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    corners = np.clip(corners, 0, np.tile(sizes, 2))
    new_sizes = sizes
    if short_edge > 0:
        new_sizes = sizes * (short_edge / sizes.min(axis=1, keepdims=True))
        new_sizes *= np.minimum(1, max_size / new_sizes.max(axis=1, keepdims=True))
        new_sizes = np.floor(new_sizes + 0.5)
    return corners * np.tile(new_sizes / sizes, 2), new_sizes, indices


def best_anchor_iou(boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid) -> np.ndarray:
    """The highest IoU of any anchor with each object.

    Args:
        boxes: (M, 4), x1, y1, x2, y2 in pixels of the network's input.
        image_sizes: (M, 2), width and height of the input before it is padded.

    Returns:
        float64 (M,).
    """
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), _OBJECTS_AT_ONCE):
        part = slice(start, start + _OBJECTS_AT_ONCE)
        padded = np.ceil(image_sizes[part] / grid.size_divisibility) * grid.size_divisibility
        for stride, anchors in zip(grid.strides, grid.cell_anchors, strict=True):
            cells = np.ceil(padded / stride)
            for anchor in anchors:
                iou = _iou_of_nearest(boxes[part], anchor, stride, grid.offset, cells)
                np.maximum(best[part], iou, out=best[part])
    return best


def _iou_of_nearest(
    boxes: np.ndarray, anchor: np.ndarray, stride: float, offset: float, cells: np.ndarray
) -> np.ndarray:
    """IoU (M,) of each box with the nearest of the anchors of one shape; ``cells`` (M, 2)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    wanted = (low + high - anchor[:2] - anchor[2:]) / 2  # where an anchor's centre coincides
    nearest = np.clip(np.rint(wanted / stride - offset), 0, cells - 1)
    shift = (nearest + offset) * stride
    overlap = np.minimum(high, shift + anchor[2:]) - np.maximum(low, shift + anchor[:2])
    intersection = overlap.clip(min=0).prod(axis=1)
    union = (high - low).prod(axis=1) + (anchor[2:] - anchor[:2]).prod() - intersection
    return intersection / union


def measure_coverage(
    table: AnnotationTable, grid: AnchorGrid, short_edge: int, max_size: int
) -> Coverage:
    """Count the objects that no anchor reaches; ``short_edge`` and ``max_size`` are those of
    :func:`resized_objects`."""
    boxes, sizes, indices = resized_objects(table, short_edge, max_size)
    is_unreached = best_anchor_iou(boxes, sizes, grid) < grid.threshold
    buckets = np.digitize(table.boxes[indices, 2:].prod(axis=1), _BUCKET_BORDERS)
    counts = np.zeros((len(table.class_names), len(SIZE_BUCKETS)), dtype=np.int64)
    unreached = np.zeros_like(counts)
    np.add.at(counts, (table.class_index[indices], buckets), 1)
    np.add.at(unreached, (table.class_index[indices], buckets), is_unreached)
    return Coverage(grid.threshold, counts, unreached)
