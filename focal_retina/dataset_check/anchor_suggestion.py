"""Anchor sizes and ratios that reach the objects of a data set.

Shapes: M objects, L levels.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .anchor_coverage import AnchorGrid, best_anchor_iou

ENOUGH = 0.01  # share of the objects that may stay unreached

_NUM_SCALES = (1, 2, 3, 4)  # sizes a level
_NUM_RATIOS = (1, 3, 5)
_NUM_STARTS = 6
_SIZE_QUANTILES = (0.005, 0.995)  # the rarest sizes are no reason for more anchors
_SAMPLE = 2000
_SEED = 0


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

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Lower is better: those that reach enough by their number, others by what they reach."""
        if self.unreached_share <= ENOUGH:
            return False, self.num_anchors, self.unreached_share
        return True, self.unreached_share, self.num_anchors

    def as_options(self) -> str:
        """KEY VALUE arguments for train_net.py."""
        return (
            f'MODEL.ANCHOR_GENERATOR.SIZES "{self.sizes.tolist()}" '
            f'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "{[self.ratios.tolist()]}"'
        )


def suggest_anchors(
    boxes: np.ndarray, image_sizes: np.ndarray, grid: AnchorGrid
) -> AnchorSuggestion | None:
    """Find the fewest anchors a cell that leave at most 1% of the objects unreached, else those
    that leave the fewest.

    Sizes are tried in octaves, as in the paper (section 4), from several smallest ones on, and
    spread over the objects' sizes; ratios are the objects' quantiles, or symmetric around 1. Of a
    large data set 2,000 objects, drawn with a fixed seed, decide which are taken.

    Args:
        boxes: (M, 4), x1, y1, x2, y2 in pixels of the network's input.
        image_sizes: (M, 2), width and height of the input.
        grid: the model's anchors; all but their shapes is kept.

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
        return float((iou < grid.threshold).mean())

    candidates = (
        AnchorSuggestion(sizes, ratios, unreached(_with_anchors(grid, sizes, ratios), drawn))
        for sizes, ratios in _candidates(boxes[drawn], grid.strides)
    )
    best = min(candidates, key=lambda candidate: candidate.rank)
    share = unreached(_with_anchors(grid, best.sizes, best.ratios), slice(None))
    return replace(best, unreached_share=share) if share < unreached(grid, slice(None)) else None


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
