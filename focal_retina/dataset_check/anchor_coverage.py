"""How many objects no anchor reaches, and anchors that would reach them.

An anchor reaches an object where their IoU is that of a positive (MODEL.RETINANET.IOU_THRESHOLDS).
No grid is laid out: the best anchor of each shape is the one whose centre is nearest in x and in y,
as the intersection is a product of two overlaps, neither of which grows with the distance.

Shapes: M objects, L levels, K classes, B = 3 buckets of size.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from .checks import sound_objects
from .table import AnnotationTable

SIZE_BUCKETS = ("small", "medium", "large")
_BUCKET_BORDERS = (32.0**2, 96.0**2)  # COCO's, here of the box's area in the original image
ENOUGH = 0.01  # share of the objects that may stay unreached

# What is tried for a suggestion
_NUM_SCALES = (1, 2, 3, 4)  # sizes a level
_NUM_RATIOS = (1, 3, 5)
_NUM_STARTS = 6
_SIZE_QUANTILES = (0.005, 0.995)  # the rarest sizes are no reason for more anchors
_SAMPLE = 2000


class AnchorGrid(NamedTuple):
    """Where a model's anchors lie."""

    strides: np.ndarray  # (L,), pixels of the network's input, ascending
    offset: float  # of the first centre, in strides
    cell_anchors: tuple[np.ndarray, ...]  # of a level, around (0, 0): rows x1, y1, x2, y2
    size_divisibility: int  # what the backbone pads its input to
    threshold: float  # IoU from which on an anchor is positive


class AnchorSuggestion(NamedTuple):
    """Values for MODEL.ANCHOR_GENERATOR, and what they are worth."""

    sizes: np.ndarray  # for SIZES: square roots of areas in pixels, a row a level
    ratios: np.ndarray  # for ASPECT_RATIOS: height by width
    unreached_share: float  # of the objects

    @property
    def num_anchors(self) -> int:  # a cell
        return self.sizes.shape[1] * len(self.ratios)

    def as_options(self) -> str:
        """KEY VALUE arguments for train_net.py."""
        key, ratios = "MODEL.ANCHOR_GENERATOR", [self.ratios.tolist()]
        return f'{key}.SIZES "{self.sizes.tolist()}" {key}.ASPECT_RATIOS "{ratios}"'


class Coverage(NamedTuple):
    """Objects of each class and size, and those that no anchor reaches."""

    grid: AnchorGrid
    short_edge: int  # of the network's input; 0: the image's own
    max_size: int
    counts: np.ndarray  # int64 (K, B)
    unreached: np.ndarray  # int64 (K, B)
    suggestion: AnchorSuggestion | None  # where it was asked for, and others would do better

    @property
    def unreached_share(self) -> float:
        return float(self.unreached.sum() / max(1, self.counts.sum()))

    def __str__(self) -> str:
        buckets = zip(SIZE_BUCKETS, self.unreached.sum(0), self.counts.sum(0), strict=True)
        parts = ", ".join(f"{name} {missed:,} of {total:,}" for name, missed, total in buckets)
        share, iou = f"{self.unreached_share:.1%}", f"{self.grid.threshold:g}"
        return f"{share} of the objects reach no anchor at an IoU of {iou} ({parts})"


def build_anchor_grid(cfg: CfgNode) -> AnchorGrid:
    """Of the model's own anchor generator; ValueError where its anchors cannot be measured."""
    labels = list(cfg.MODEL.RETINANET.IOU_LABELS)
    if 1 not in labels[1:]:
        raise ValueError(f"MODEL.RETINANET.IOU_LABELS {labels} makes no anchor positive by its IoU")
    with torch.device("meta"):  # only its strides are asked for: no memory, no random numbers
        backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    generator = build_anchor_generator(cfg, [shapes[x] for x in cfg.MODEL.RETINANET.IN_FEATURES])
    if not isinstance(generator, DefaultAnchorGenerator):
        name = cfg.MODEL.ANCHOR_GENERATOR.NAME
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.NAME {name}: only upright anchors are measured")
    return AnchorGrid(
        strides=np.array(generator.strides, dtype=np.float64),
        offset=generator.offset,
        cell_anchors=tuple(x.double().numpy() for x in generator.cell_anchors),
        size_divisibility=max(1, backbone.size_divisibility),
        threshold=float(cfg.MODEL.RETINANET.IOU_THRESHOLDS[labels.index(1, 1) - 1]),
    )


def input_size(cfg: CfgNode, *, training: bool) -> tuple[int, int]:
    """Short edge, the middle one of several, and maximal size of the network's input; large-scale
    jitter at scale 1."""
    sizes, jitter = cfg.INPUT, cfg.INPUT.LARGE_SCALE_JITTER
    if not training:
        return sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST
    if jitter.ENABLED:
        return jitter.SIZE, jitter.SIZE
    edges = sorted(np.atleast_1d(sizes.MIN_SIZE_TRAIN).tolist())
    is_range = sizes.MIN_SIZE_TRAIN_SAMPLING == "range"
    return sum(edges) // len(edges) if is_range else edges[len(edges) // 2], sizes.MAX_SIZE_TRAIN


def resized_objects(
    table: AnnotationTable, short_edge: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sound boxes of known classes, no crowds, resized as by Detectron2's ``ResizeShortestEdge``;
    ``short_edge`` 0: not at all. Boxes cut at the border, float64 (M, 4), x1, y1, x2, y2; width and
    height of their images (M, 2); and which annotations they are, int64 (M,)."""
    sizes = table.sizes_of_images
    indices = np.flatnonzero(sound_objects(table) & (sizes > 0).all(axis=1))
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
    best, (low, high) = np.zeros(len(boxes)), np.split(boxes, 2, axis=1)
    area = (high - low).prod(axis=1)
    padded = np.ceil(image_sizes / grid.size_divisibility) * grid.size_divisibility
    for stride, anchors in zip(grid.strides, grid.cell_anchors, strict=True):
        last = np.ceil(padded / stride) - 1
        for start, end in anchors.reshape(-1, 2, 2):
            wanted = (low + high - start - end) / 2  # where the centres coincide
            nearest = np.rint(wanted / stride - grid.offset)
            shift = (np.clip(nearest, 0, last) + grid.offset) * stride
            overlap = np.minimum(high, shift + end) - np.maximum(low, shift + start)
            intersection = overlap.clip(min=0).prod(axis=1)
            union = area + (end - start).prod() - intersection
            best = np.maximum(best, intersection / union)
    return best


def measure_coverage(
    table: AnnotationTable, grid: AnchorGrid, short_edge: int, max_size: int, suggest: bool = False
) -> Coverage:
    """Count the objects that no anchor reaches, at the size of :func:`resized_objects`; where they
    are over 1%, ``suggest`` looks for better anchors."""
    boxes, sizes, indices = resized_objects(table, short_edge, max_size)
    is_unreached = best_anchor_iou(boxes, sizes, grid) < grid.threshold
    buckets = np.digitize(table.boxes[indices, 2:].prod(axis=1), _BUCKET_BORDERS)
    counts, unreached = np.zeros((2, len(table.class_names), len(SIZE_BUCKETS)), dtype=np.int64)
    where = table.class_index[indices], buckets
    np.add.at(counts, where, 1)
    np.add.at(unreached, where, is_unreached)
    is_wanting = suggest and unreached.sum() > ENOUGH * counts.sum()
    suggestion = suggest_anchors(boxes, sizes, grid) if is_wanting else None
    return Coverage(grid, short_edge, max_size, counts, unreached, suggestion)


def suggest_anchors(
    boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid
) -> AnchorSuggestion | None:
    """The fewest anchors a cell that leave at most 1% of the objects unreached, else those that
    leave the fewest; None if the model's own are no worse. 2,000 drawn objects decide."""
    count = min(len(boxes), _SAMPLE)
    drawn = np.random.default_rng(0).choice(len(boxes), count, replace=False)

    def suggestion(sizes: np.ndarray, ratios: np.ndarray, which: Any) -> AnchorSuggestion:
        # Around (0, 0), as DefaultAnchorGenerator makes them
        widths, heights = sizes[..., None] / np.sqrt(ratios), sizes[..., None] * np.sqrt(ratios)
        cells = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
        other = grid._replace(cell_anchors=tuple(cells.reshape(len(sizes), -1, 4)))
        iou = best_anchor_iou(boxes[which], image_sizes[which], other)
        return AnchorSuggestion(sizes, ratios, float((iou < grid.threshold).mean()))

    def rank(x: AnchorSuggestion) -> tuple[float, int, float]:
        return max(x.unreached_share, ENOUGH), x.num_anchors, x.unreached_share

    tried = _candidates(boxes[drawn], grid.strides)
    best = min((suggestion(*candidate, drawn) for candidate in tried), key=rank)
    best = suggestion(best.sizes, best.ratios, slice(None))
    share_now = (best_anchor_iou(boxes, image_sizes, grid) < grid.threshold).mean()
    return best if best.unreached_share < share_now else None


def _candidates(boxes: np.ndarray, strides: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sizes, a row a level, in octaves as in the paper (section 4) or spread over the objects'
    sizes; and ratios, the objects' quantiles."""
    extent = boxes[:, 2:] - boxes[:, :2]
    low, high = np.quantile(np.sqrt(extent.prod(axis=1)), _SIZE_QUANTILES)
    # RetinaNet begins at 4 strides; on a coarser grid an object falls between the anchors.
    starts = np.geomspace(low, max(low, 8 * strides[0]), _NUM_STARTS)
    for num_scales, num_ratios in itertools.product(_NUM_SCALES, _NUM_RATIOS):
        fractions = 2 ** (np.arange(num_scales) / num_scales)
        families = [np.outer(start * strides / strides[0], fractions) for start in starts]
        families.append(np.geomspace(low, high, len(strides) * num_scales).reshape(-1, num_scales))
        middles = (np.arange(num_ratios) + 0.5) / num_ratios
        ratios = np.quantile(extent[:, 1] / extent[:, 0], middles)
        for sizes in families:
            yield _round(sizes, 3), _round(ratios, 2)


def _round(values: np.ndarray, digits: int) -> np.ndarray:  # significant ones
    return np.vectorize(lambda value: float(f"{value:.{digits}g}"))(values)
