"""How many objects no anchor reaches, and anchors that would reach them.

An anchor reaches an object where their IoU is that of a positive (MODEL.RETINANET.IOU_THRESHOLDS).
An object that none reaches is learned from its best anchors only, or as background.

No grid is laid out: the best anchor of each shape is the one whose centre is nearest in x and in y,
as the intersection is a product of two overlaps, neither of which grows with the distance.

Shapes: M objects, L levels, K classes, B = 3 buckets of size.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from .checks import CHECKS, box_faults
from .table import AnnotationTable

SIZE_BUCKETS = ("small", "medium", "large")
_BUCKET_BORDERS = (32.0**2, 96.0**2)  # COCO's, here of the box's area in the original image
_OBJECTS_AT_ONCE = 8192
ENOUGH = 0.01  # share of the objects that may stay unreached

# What is tried for a suggestion
_NUM_SCALES = (1, 2, 3, 4)  # sizes a level
_NUM_RATIOS = (1, 3, 5)
_NUM_STARTS = 6
_SIZE_QUANTILES = (0.005, 0.995)  # the rarest sizes are no reason for more anchors
_SAMPLE = 2000


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """Where a model's anchors lie, in numbers."""

    strides: np.ndarray  # (L,), pixels of the network's input, ascending
    offset: float  # of the first centre, in strides
    cell_anchors: tuple[np.ndarray, ...]  # of a level, around (0, 0): rows x1, y1, x2, y2
    size_divisibility: int  # what the backbone pads its input to
    threshold: float  # IoU from which on an anchor is positive


@dataclass(frozen=True, eq=False)
class Coverage:
    """Objects of each class and size, and those that no anchor reaches."""

    threshold: float  # as in AnchorGrid
    counts: np.ndarray  # int64 (K, B)
    unreached: np.ndarray  # int64 (K, B)

    @property
    def unreached_share(self) -> float:
        """Of all objects; 0 if there are none."""
        return float(self.unreached.sum() / max(1, self.counts.sum()))

    def __str__(self) -> str:
        buckets = zip(SIZE_BUCKETS, self.unreached.sum(0), self.counts.sum(0), strict=True)
        parts = [f"{name} {missed:,} of {total:,}" for name, missed, total in buckets]
        return (
            f"{self.unreached_share:.1%} of the objects reach no anchor at an IoU of "
            f"{self.threshold:g} ({', '.join(parts)})"
        )


def build_anchor_grid(cfg: CfgNode) -> AnchorGrid:
    """The anchors of the model, from its own anchor generator; ValueError where these cannot be
    measured."""
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


def resized_objects(
    table: AnnotationTable, short_edge: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The usable objects at the size in which the network sees them: no crowds, faulty boxes and
    unknown classes. The arithmetic is that of Detectron2's ``ResizeShortestEdge``; a ``short_edge``
    of 0 keeps the images' size.

    Returns:
        boxes, float64 (M, 4), x1, y1, x2, y2 after cutting at the image's border; the images'
        sizes (M, 2), width and height; and which annotations they are, int64 (M,).
    """
    sizes = table.sizes_of_images
    usable = ~table.is_crowd & (table.class_index >= 0) & (sizes > 0).all(axis=1)
    for name, is_faulty in box_faults(table.boxes, sizes).items():
        if CHECKS[name].skipped:
            usable &= ~is_faulty
    indices = np.flatnonzero(usable)
    boxes, sizes = table.boxes[indices], sizes[indices]
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    corners = np.clip(corners, 0, np.tile(sizes, 2))
    new_sizes = sizes
    if short_edge > 0:
        new_sizes = sizes * (short_edge / sizes.min(axis=1, keepdims=True))
        new_sizes *= np.minimum(1, max_size / new_sizes.max(axis=1, keepdims=True))
        new_sizes = np.maximum(np.floor(new_sizes + 0.5), 1)
    return corners * np.tile(new_sizes / sizes, 2), new_sizes, indices


def best_anchor_iou(boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid) -> np.ndarray:
    """The highest IoU of any anchor with each object, float64 (M,): boxes (M, 4), x1, y1, x2, y2 in
    pixels of the network's input, and its width and height before it is padded, (M, 2)."""
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), _OBJECTS_AT_ONCE):
        part = slice(start, start + _OBJECTS_AT_ONCE)
        low, high = boxes[part, :2], boxes[part, 2:]
        area = (high - low).prod(axis=1)
        padded = np.ceil(image_sizes[part] / grid.size_divisibility) * grid.size_divisibility
        for stride, anchors in zip(grid.strides, grid.cell_anchors, strict=True):
            last = np.ceil(padded / stride) - 1
            for anchor in anchors:
                wanted = (low + high - anchor[:2] - anchor[2:]) / 2  # where the centres coincide
                nearest = np.rint(wanted / stride - grid.offset)
                shift = (np.clip(nearest, 0, last) + grid.offset) * stride
                overlap = np.minimum(high, shift + anchor[2:]) - np.maximum(low, shift + anchor[:2])
                intersection = overlap.clip(min=0).prod(axis=1)
                union = area + (anchor[2:] - anchor[:2]).prod() - intersection
                np.maximum(best[part], intersection / union, out=best[part])
    return best


def measure_coverage(
    table: AnnotationTable, grid: AnchorGrid, short_edge: int, max_size: int
) -> Coverage:
    """Count the objects that no anchor reaches, at the size of :func:`resized_objects`."""
    boxes, sizes, indices = resized_objects(table, short_edge, max_size)
    is_unreached = best_anchor_iou(boxes, sizes, grid) < grid.threshold
    buckets = np.digitize(table.boxes[indices, 2:].prod(axis=1), _BUCKET_BORDERS)
    counts = np.zeros((len(table.class_names), len(SIZE_BUCKETS)), dtype=np.int64)
    unreached = np.zeros_like(counts)
    where = table.class_index[indices], buckets
    np.add.at(counts, where, 1)
    np.add.at(unreached, where, is_unreached)
    return Coverage(grid.threshold, counts, unreached)


@dataclass(frozen=True, eq=False)
class AnchorSuggestion:
    """Values for MODEL.ANCHOR_GENERATOR, and what they are worth."""

    sizes: np.ndarray  # for SIZES: square roots of areas in pixels, a row a level
    ratios: np.ndarray  # for ASPECT_RATIOS: height by width
    unreached_share: float  # of the objects

    @property
    def num_anchors(self) -> int:
        """Anchors a cell."""
        return self.sizes.shape[1] * len(self.ratios)

    def as_options(self) -> str:
        """KEY VALUE arguments for train_net.py."""
        return (
            f'MODEL.ANCHOR_GENERATOR.SIZES "{self.sizes.tolist()}" '
            f'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "{[self.ratios.tolist()]}"'
        )


def suggest_anchors(
    boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid
) -> AnchorSuggestion | None:
    """The fewest anchors a cell that leave at most 1% of the objects unreached, else those that
    leave the fewest; None if none that was tried is better than the model's own.

    Sizes are tried in octaves, as in the paper (section 4), and spread over the objects' sizes;
    ratios are the objects' quantiles, or symmetric around 1. Of a large data set 2,000 objects,
    drawn with a fixed seed, decide. Arguments are those of :func:`best_anchor_iou`.
    """
    if len(boxes) == 0:
        return None
    drawn = np.arange(len(boxes))
    if len(boxes) > _SAMPLE:
        drawn = np.random.default_rng(0).choice(drawn, _SAMPLE, replace=False)

    def unreached(candidate: AnchorGrid, which: np.ndarray | slice = slice(None)) -> float:
        iou = best_anchor_iou(boxes[which], image_sizes[which], candidate)
        return float((iou < grid.threshold).mean())

    def rank(candidate: AnchorSuggestion) -> tuple[float, int, float]:
        share = candidate.unreached_share
        return max(share, ENOUGH), candidate.num_anchors, share

    candidates = (
        AnchorSuggestion(sizes, ratios, unreached(_with_anchors(grid, sizes, ratios), drawn))
        for sizes, ratios in _candidates(boxes[drawn], grid.strides)
    )
    best = min(candidates, key=rank)
    share = unreached(_with_anchors(grid, best.sizes, best.ratios))
    return replace(best, unreached_share=share) if share < unreached(grid) else None


def _candidates(boxes: np.ndarray, strides: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sizes, a row a level, and ratios."""
    extent = boxes[:, 2:] - boxes[:, :2]
    low, high = np.quantile(np.sqrt(extent.prod(axis=1)), _SIZE_QUANTILES)
    # RetinaNet begins at 4 strides; on a coarser grid an object falls between the anchors.
    starts = np.geomspace(low, max(low, 8 * strides[0]), _NUM_STARTS)
    for num_scales, num_ratios in itertools.product(_NUM_SCALES, _NUM_RATIOS):
        fractions = 2 ** (np.arange(num_scales) / num_scales)
        families = [np.outer(start * strides / strides[0], fractions) for start in starts]
        families.append(np.geomspace(low, high, len(strides) * num_scales).reshape(-1, num_scales))
        middles = (np.arange(num_ratios) + 0.5) / num_ratios
        quantiles = np.quantile(extent[:, 1] / extent[:, 0], middles)
        symmetric = 2.0 ** (np.arange(num_ratios) - num_ratios // 2)
        for sizes, ratios in itertools.product(families, (_round(quantiles, 2), symmetric)):
            yield _round(sizes, 3), ratios


def _round(values: np.ndarray, digits: int) -> np.ndarray:
    """To significant digits."""
    return np.vectorize(lambda value: float(f"{value:.{digits}g}"))(values)


def _with_anchors(grid: AnchorGrid, sizes: np.ndarray, ratios: np.ndarray) -> AnchorGrid:
    """The grid with other anchors, around (0, 0) as DefaultAnchorGenerator makes them."""
    widths, heights = sizes[..., None] / np.sqrt(ratios), sizes[..., None] * np.sqrt(ratios)
    cells = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
    return replace(grid, cell_anchors=tuple(cells.reshape(len(sizes), -1, 4)))
