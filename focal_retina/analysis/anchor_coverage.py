"""How many objects no anchor reaches, and which anchors would.

An anchor reaches an object where their IoU is that of a positive (MODEL.RETINANET.IOU_THRESHOLDS);
an object that none reaches is learned from its best anchors only, or, without their promotion, as
background.

No grid is laid out for it. All anchors of one shape lie on a grid, their IoU with an object is a
function of the intersection alone, and that is a product of two overlaps, neither of which grows
with the distance between the centres: the best anchor of each shape is the one whose centre is
nearest in x and nearest in y.

Shapes: M objects, L levels, A anchor shapes of all levels, K classes, B = 3 buckets of size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.checks import AnnotationTable, box_faults

SIZE_BUCKETS = ("small", "medium", "large")
_BUCKET_BORDERS = (32.0**2, 96.0**2)  # COCO's, here of the box's area in the original image
_OBJECTS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """Where a model's anchors lie, in numbers."""

    strides: np.ndarray
    """(L,), pixels of the network's input, ascending."""
    offset: float
    """Of the first centre, in strides."""
    cell_anchors: tuple[np.ndarray, ...]
    """A level's anchors around (0, 0), x1, y1, x2, y2, a row each."""
    size_divisibility: int
    """What the backbone pads its input to."""

    def to_json(self) -> list[Any]:
        """Everything, in json's types."""
        anchors = [level.tolist() for level in self.cell_anchors]
        return [self.strides.tolist(), self.offset, anchors, self.size_divisibility]


@dataclass(frozen=True, eq=False)
class Coverage:
    """Objects of each class and size, and those that no anchor reaches."""

    class_names: tuple[str, ...]
    threshold: float
    """IoU from which on an anchor is positive."""
    counts: np.ndarray
    """int64 (K, B)"""
    unreached: np.ndarray
    """int64 (K, B)"""

    @property
    def unreached_share(self) -> float:
        """Of all objects; 0 if there are none."""
        return float(self.unreached.sum() / max(1, self.counts.sum()))

    def to_json(self) -> list[Any]:
        """Everything, in json's types."""
        return [self.class_names, self.threshold, self.counts.tolist(), self.unreached.tolist()]

    @classmethod
    def from_json(cls, content: list[Any]) -> "Coverage":
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError, ValueError: it is not what that wrote.
        """
        class_names, threshold, counts, unreached = content
        return cls(tuple(class_names), threshold, np.array(counts), np.array(unreached))

    def __str__(self) -> str:
        parts = []
        for bucket, name in enumerate(SIZE_BUCKETS):
            total = int(self.counts[:, bucket].sum())
            parts.append(f"{name} {int(self.unreached[:, bucket].sum()):,} of {total:,}")
        return (
            f"{self.unreached_share:.1%} of the objects reach no anchor at an IoU of "
            f"{self.threshold:g} ({', '.join(parts)})"
        )


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
    sizes = np.vstack([table.image_sizes, np.full((1, 2), np.nan)])[table.image_index]
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
    table: AnnotationTable,
    grid: AnchorGrid,
    *,
    threshold: float,
    short_edge: int,
    max_size: int,
) -> "Coverage":
    """Count the objects that no anchor reaches, by class and size.

    Args:
        table: a data set's annotations.
        grid: the anchors.
        threshold: IoU from which on an anchor is positive.
        short_edge, max_size: see :func:`resized_objects`.
    """
    boxes, sizes, indices = resized_objects(table, short_edge, max_size)
    unreached = best_anchor_iou(boxes, sizes, grid) < threshold
    areas = table.boxes[indices, 2:].prod(axis=1)
    buckets = np.digitize(areas, _BUCKET_BORDERS)
    shape = len(table.class_names), len(SIZE_BUCKETS)
    cells = table.class_index[indices] * len(SIZE_BUCKETS) + buckets
    counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    missed = np.bincount(cells[unreached], minlength=shape[0] * shape[1]).reshape(shape)
    return Coverage(tuple(table.class_names), threshold, counts, missed)
