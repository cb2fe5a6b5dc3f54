"""Anchor sizes and ratios that reach the objects of a data set.

Shapes: M objects, L levels.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .anchor_coverage import AnchorGrid, best_anchor_iou

ENOUGH = 0.01  # share of the objects that may stay unreached

_NUM_SCALES = (1, 2, 3, 4)  # sizes a level
_NUM_RATIOS = (1, 3, 5)
_NUM_STARTS = 6
_SIZE_QUANTILES = (0.005, 0.995)  # the rarest sizes are no reason for more anchors
_SAMPLE = 2000
_SEED = 0


@dataclass(frozen=True)
class AnchorSuggestion:
    """Values for MODEL.ANCHOR_GENERATOR, and what they are worth."""

    sizes: tuple[tuple[float, ...], ...]
    """For SIZES: square roots of areas in pixels, a tuple a level."""
    ratios: tuple[float, ...]
    """For ASPECT_RATIOS: height by width."""
    unreached_share: float
    """Of the objects, at the threshold asked for."""

    @property
    def num_anchors(self) -> int:
        """Anchors a cell."""
        return len(self.sizes[0]) * len(self.ratios)

    @property
    def reaches_enough(self) -> bool:
        """False where the grid itself is too coarse: then only a larger input helps, or a finer
        level in MODEL.RETINANET.IN_FEATURES."""
        return self.unreached_share <= ENOUGH

    def as_options(self) -> str:
        """KEY VALUE arguments for train_net.py."""
        sizes = str([list(level) for level in self.sizes])
        return (
            f'MODEL.ANCHOR_GENERATOR.SIZES "{sizes}" '
            f'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "{[list(self.ratios)]}"'
        )


def suggest_anchors(
    boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid, threshold: float
) -> AnchorSuggestion | None:
    """Find the fewest anchors a cell that leave at most 1% of the objects unreached, else those
    that leave the fewest.

    Sizes are tried in octaves, as in the paper (section 4), from several smallest ones on, and
    spread over the objects' sizes; ratios are the objects' quantiles, or symmetric around 1. Of a
    large data set 2,000 objects, drawn with a fixed seed, decide which are taken.

    Args:
        boxes: (M, 4), x1, y1, x2, y2 in pixels of the network's input.
        image_sizes: (M, 2), width and height of the input.
        grid: the model's anchors; strides, offset and padding are kept.
        threshold: IoU from which on an anchor is positive.

    Returns:
        The suggestion, or None if none that was tried is better than the model's own anchors.
    """
    if len(boxes) == 0:
        return None
    drawn = np.arange(len(boxes))
    if len(boxes) > _SAMPLE:
        drawn = np.random.default_rng(_SEED).choice(drawn, _SAMPLE, replace=False)

    def unreached(candidate: AnchorGrid, which: np.ndarray | slice) -> float:
        iou = best_anchor_iou(boxes[which], image_sizes[which], candidate)
        return float((iou < threshold).mean())

    best = min(
        (
            AnchorSuggestion(sizes, ratios, unreached(_with_anchors(grid, sizes, ratios), drawn))
            for sizes, ratios in _candidates(boxes[drawn], grid.strides)
        ),
        key=_rank,
    )
    everything = slice(None)
    share = unreached(_with_anchors(grid, best.sizes, best.ratios), everything)
    best = dataclasses.replace(best, unreached_share=share)
    return best if share < unreached(grid, everything) else None


def _rank(candidate: AnchorSuggestion) -> tuple[bool, float, float]:
    """Lower is better: those that reach enough by their number, the others by what they reach."""
    if candidate.reaches_enough:
        return False, candidate.num_anchors, candidate.unreached_share
    return True, candidate.unreached_share, candidate.num_anchors


def _candidates(
    boxes: np.ndarray, strides: np.ndarray
) -> Iterator[tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]]:
    """Sizes by level, and ratios."""
    extent = boxes[:, 2:] - boxes[:, :2]
    low, high = np.quantile(np.sqrt(extent.prod(axis=1)), _SIZE_QUANTILES)
    for num_scales, num_ratios in itertools.product(_NUM_SCALES, _NUM_RATIOS):
        fractions = 2 ** (np.arange(num_scales) / num_scales)
        # RetinaNet begins at 4 strides; on a coarser grid an object falls between the anchors.
        starts = np.geomspace(low, max(low, 8 * strides[0]), _NUM_STARTS)
        families = [np.outer(start * strides / strides[0], fractions) for start in starts]
        families.append(np.geomspace(low, high, len(strides) * num_scales).reshape(-1, num_scales))
        for sizes in families:
            rounded = tuple(tuple(_round(x, 3) for x in level) for level in sizes)
            for ratios in _ratios(extent[:, 1] / extent[:, 0], num_ratios):
                yield rounded, ratios


def _ratios(values: np.ndarray, count: int) -> Iterator[tuple[float, ...]]:
    """The middles of ``count`` equal shares of ``values``, and powers of 2 around 1."""
    middles = (np.arange(count) + 0.5) / count
    yield tuple(_round(x, 2) for x in np.quantile(values, middles))
    yield tuple(float(2.0**power) for power in range(-(count // 2), count // 2 + 1))


def _round(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _with_anchors(
    grid: AnchorGrid, sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...]
) -> AnchorGrid:
    return dataclasses.replace(grid, cell_anchors=tuple(_cell_anchors(x, ratios) for x in sizes))


def _cell_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> np.ndarray:
    """Anchors around (0, 0) as DefaultAnchorGenerator makes them, a row for each size and ratio."""
    widths = np.array([size / ratio**0.5 for size in sizes for ratio in ratios])
    heights = np.array([size * ratio**0.5 for size in sizes for ratio in ratios])
    return np.stack([-widths, -heights, widths, heights], axis=1) / 2
