"""How the focal loss is spread over predictions: the paper's figure 4, and who holds the loss.

A sample is one logit of one anchor that is not ignored: a positive for the anchor's own class, a
negative for every other class (of a background anchor, for all). Nothing is kept of a sample but
its part in sums over bins of x_t, over levels and over classes, so that the memory does not grow
with the number of samples.

Shapes: N images, R_l anchors of level l, L levels, K classes, G gammas, B bins, C parts of a whole.
    Where 2 stands for a dimension of signs, negatives come first; of quantities, the loss.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..losses import focal_loss

SIGNS = ("negatives", "positives")

# σ(x) of x above it is 1 in fp32, which ends the gradient of a loss that is computed from p_t.
SATURATION = 25 * math.log(2)

# Borders of the score buckets; a score is σ(x).
SCORE_BORDERS = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)

# The bins of x_t: up to the bound of this width, and one for what lies beyond on either side.
_BIN_WIDTH = 1 / 64
_BOUND = 32

# Samples taken at once: large enough for a GPU, 2 MB in fp64.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class LossCdf:
    """Normalised loss of one sign, cumulated from its lowest to its highest.

    Each point is that of the sorted samples, to the rounding of fp64 sums. Between two points the
    sorted samples' curve lies on the straight line or below it, nowhere by more than ``error``.

    Attributes:
        samples: share of the samples, from 0 to 1.
        loss: share of the loss that these samples of the lowest loss hold, from 0 to 1.
        error: see above.
    """

    samples: list[float]
    loss: list[float]
    error: float

    def hardest(self, share: float) -> float:
        """Share of the loss in the ``share`` of samples with the highest loss.

        Sorting the samples gives that, or up to ``error`` more.
        """
        return float(1 - np.interp(1 - share, self.samples, self.loss))


@dataclass(frozen=True)
class LossShares:
    """What each part (level, class or score bucket) holds of the whole, by γ and sign.

    Attributes:
        names: of the C parts.
        samples: (2, C) number of samples.
        loss, gradient: (G, 2, C) shares of the sum of α_t·FL, and of |d α_t·FL / dx|, over all
            samples; those of one γ sum to 1 (0 where the whole loss is 0).
    """

    names: list[str]
    samples: list[list[int]]
    loss: list[list[list[float]]]
    gradient: list[list[list[float]]]


class LossDistribution:
    """Accumulates predictions image by image, in memory that does not grow.

    FL falls with x_t, whatever γ. So bins of x_t from high to low hold the samples from the lowest
    loss to the highest, for all γ at once, and the sum of each bin's losses is all that the CDF
    needs to be exact at the bins' borders.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        num_classes: int,
        gammas: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            num_levels, num_classes: L and K.
            gammas: the γ of the losses that are accumulated, ≥ 0, each once.
            device: where the logits will be.

        Raises:
            ValueError: negative, repeated or no gammas.
        """
        if not gammas or min(gammas) < 0 or len(set(gammas)) < len(gammas):
            raise ValueError(f"gammas are {list(gammas)}: give different numbers >= 0")
        self.gammas = tuple(gammas)
        self.num_classes = num_classes
        self._borders = _bin_borders().to(device)
        num_bins, num_gammas = len(self._borders) + 1, len(gammas)
        zeros = functools.partial(torch.zeros, device=device)
        self.bin_counts = zeros((2, num_bins), dtype=torch.int64)
        self.bin_sums = zeros((2, num_gammas, 2, num_bins), dtype=torch.float64)
        cells = (num_levels, 2, num_classes)
        self.class_counts = zeros(cells, dtype=torch.int64)
        self.class_sums = zeros((2, num_gammas, *cells), dtype=torch.float64)

    @property
    def num_negatives(self) -> int:
        return int(self.bin_counts[0].sum())

    @property
    def num_positives(self) -> int:
        return int(self.bin_counts[1].sum())

    @torch.no_grad()
    def update(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Add the predictions of some images.

        Args:
            logits: per level, (N, R_l, K).
            labels: per level, int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background.

        Raises:
            ValueError: a logit is NaN or infinite; nothing is added then.
        """
        if not all(bool(x.isfinite().all()) for x in logits):
            raise ValueError("there are NaN or infinite logits: the model has diverged")
        rows = max(1, _BLOCK // self.num_classes)
        for level, (x, y) in enumerate(zip(logits, labels, strict=True)):
            is_used = y >= 0
            for block in zip(x[is_used].split(rows), y[is_used].split(rows), strict=True):
                self._add(level, *block)

    def _add(self, level: int, logits: Tensor, labels: Tensor) -> None:
        """Add a block: ``logits`` (M, K), ``labels`` (M,) without ignored ones."""
        classes = torch.arange(self.num_classes, device=labels.device)
        is_own = labels[:, None] == classes
        z = torch.where(is_own, -logits, logits).double().flatten()  # -x_t
        bins = torch.bucketize(-z, self._borders, right=True)
        bins += is_own.flatten() * self.bin_counts.shape[1]
        cells = (classes + is_own * self.num_classes).flatten()

        _add_histogram(self.bin_counts, bins)
        _add_histogram(self.class_counts[level], cells)
        for g, gamma in enumerate(self.gammas):
            for quantity, values in enumerate(_loss_and_slope(gamma, z)):
                _add_histogram(self.bin_sums[quantity, g], bins, values)
                _add_histogram(self.class_sums[quantity, g, level], cells, values)

    def cdf(self, sign: str, gamma: float) -> LossCdf | None:
        """The paper's figure 4: one curve; None where there is no loss of that sign.

        Args:
            sign: one of SIGNS.
            gamma: one of :attr:`gammas`.
        """
        row, g = SIGNS.index(sign), self.gammas.index(gamma)
        # From high to low x_t: from low to high loss.
        counts = self.bin_counts[row].flip(0)
        sums = self.bin_sums[0, g, row].flip(0)
        total = float(sums.sum())
        if total == 0:
            return None
        losses, _ = _loss_and_slope(gamma, -self._borders.flip(0))
        lowest = torch.cat([losses.new_zeros(1), losses])
        # The samples beyond the last border have no upper bound but their sum.
        highest = torch.cat([losses, sums[-1:] - (counts[-1:] - 1).clamp(min=0) * losses[-1:]])
        error = _largest_deviation(counts, sums, lowest, highest) / total
        is_used = counts > 0
        return LossCdf(_cumulated(counts[is_used]), _cumulated(sums[is_used]), error)

    def shares(
        self, alpha: float, level_names: Sequence[str], class_names: Sequence[str]
    ) -> dict[str, LossShares]:
        """What each level, class and score bucket holds: "level", "class", "score bucket".

        Args:
            alpha: weight of positives, and 1 - alpha of negatives; < 0: no weights.
            level_names: L names.
            class_names: K names.
        """
        weights = self.bin_sums.new_tensor([1 - alpha, alpha] if alpha >= 0 else [1, 1])
        borders = ("0", *(f"{border:g}" for border in SCORE_BORDERS), "1")
        score_names = [f"{low}–{high}" for low, high in itertools.pairwise(borders)]
        parts = {
            "level": (level_names, self.class_counts.sum(-1).T, self.class_sums.sum(-1).mT),
            "class": (class_names, self.class_counts.sum(0), self.class_sums.sum(2)),
            "score bucket": (
                score_names,
                self._by_score(self.bin_counts).long(),
                self._by_score(self.bin_sums),
            ),
        }
        result = {}
        for part, (names, counts, sums) in parts.items():
            weighted = sums * weights[:, None]
            whole = weighted.sum((-2, -1), keepdim=True)
            loss, gradient = torch.where(whole > 0, weighted / whole, 0).tolist()
            result[part] = LossShares(list(names), counts.tolist(), loss, gradient)
        return result

    def _by_score(self, values: Tensor) -> Tensor:
        """(…, 2, B) over bins of x_t to (…, 2, C) over buckets of scores."""
        inside = torch.cat([self._borders[:1] - 1, self._borders])
        inside = (inside + torch.cat([self._borders, self._borders[-1:] + 1])) / 2
        borders = torch.tensor(SCORE_BORDERS, dtype=torch.float64, device=inside.device).logit()
        buckets = [torch.bucketize(x, borders, right=True) for x in (-inside, inside)]
        member = torch.nn.functional.one_hot(torch.stack(buckets), len(borders) + 1).double()
        return (values.double()[..., None, :] @ member).squeeze(-2)

    def saturated(self) -> dict[str, dict[str, float]]:
        """Share of each sign's samples with |x| above SATURATION, by the side that they are on.

        Returns:
            sign -> {"right": x_t is above it, "wrong": x_t is below its negative}; 0 without
            samples.
        """
        first = int((self._borders < SATURATION).sum()) + 1
        is_right = torch.arange(len(self._borders) + 1, device=self._borders.device) >= first
        sides = {"right": is_right, "wrong": is_right.flip(0)}
        counts = dict(zip(SIGNS, self.bin_counts, strict=True))
        return {
            sign: {
                side: float(count[where].sum()) / max(1, int(count.sum()))
                for side, where in sides.items()
            }
            for sign, count in counts.items()
        }


def _bin_borders() -> Tensor:
    """Even borders, and those that the buckets of scores and the saturation need; symmetrical."""
    even = torch.arange(-_BOUND, _BOUND + _BIN_WIDTH, _BIN_WIDTH, dtype=torch.float64)
    extra = torch.tensor([*SCORE_BORDERS, 0.5], dtype=torch.float64).logit()
    extra = torch.cat([extra, extra.new_tensor([SATURATION])])
    return torch.cat([even, extra, -extra]).unique()


def _add_histogram(total: Tensor, index: Tensor, weights: Tensor | None = None) -> None:
    """Add to ``total``, in place, 1 or the weight where the index of its flat form says."""
    total += torch.bincount(index, weights, minlength=total.numel()).view(total.shape)


def _loss_and_slope(gamma: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """FL, unweighted, and |dFL/dx|, of z = -x_t."""
    with torch.enable_grad():
        x_t = (-z).requires_grad_()
        loss = focal_loss(x_t, gamma)
        (slope,) = torch.autograd.grad(loss.sum(), x_t)
    return loss.detach(), -slope


def _largest_deviation(counts: Tensor, sums: Tensor, lowest: Tensor, highest: Tensor) -> float:
    """How far sorted values' running sum can lie below the straight line of any bin.

    Farthest where each of n values of mean m is one of the bin's extremes a and b: a fraction of
    (b - m) / (b - a) of them is a, and after these n·(m - a)·(b - m) / (b - a) is missing.
    """
    mean = sums / counts.clamp(min=1)
    missing = counts * (mean - lowest) * (highest - mean) / (highest - lowest)
    # One value, or equal ones, leave nothing open; nor may rounding.
    return float(missing.where((counts > 1) & (highest > lowest), 0).clamp(min=0).max())


def _cumulated(values: Tensor) -> list[float]:
    total = torch.cat([values.new_zeros(1), values]).double().cumsum(0)
    return (total / total[-1]).tolist()
