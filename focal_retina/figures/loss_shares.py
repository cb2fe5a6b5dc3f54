"""Which levels, classes and scores hold the focal loss and its gradient.

Shapes: G gammas, C parts of a whole. Of the dimension 2 negatives come first.
"""

import itertools
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..losses import focal_loss
from .logit_sample import SIGNS, LogitSample
from .style import DPI, SERIES_COLORS, style_axes

# Borders of the score buckets; a score is σ(x).
SCORE_BORDERS = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
_MAX_NAMES = 12  # of more classes the smallest become one part, "others"


class LossShares(NamedTuple):
    """What each part (a level, a class or a score bucket) holds of the whole."""

    names: list[str]  # C
    loss: np.ndarray  # (G, 2, C): shares of α_t·FL, those of one γ sum to 1
    gradient: np.ndarray  # (G, 2, C): the same of |d α_t·FL / dx|

    def to_json(self) -> dict[str, Any]:
        return {"names": self.names, "loss": self.loss.tolist(), "gradient": self.gradient.tolist()}


def loss_shares(
    samples: Mapping[str, LogitSample],
    gammas: Sequence[float],
    alpha: float,
    *,
    level_names: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, LossShares]:
    """What each "level", "class" and "score bucket" holds; 0 where the whole loss is 0.

    Args:
        samples: sign -> what was drawn; a sample stands for all that were seen.
        gammas: of the losses.
        alpha: weight of positives, and 1 - alpha of negatives; < 0: no weights.
        level_names, class_names: in the order of the model.
    """
    borders = ("0", *(f"{border:g}" for border in SCORE_BORDERS), "1")
    buckets = [f"{low}–{high}" for low, high in itertools.pairwise(borders)]
    names = {"level": [*level_names], "class": [*class_names], "score bucket": buckets}
    sums = {part: np.zeros((2, len(gammas), 2, len(its))) for part, its in names.items()}
    weights = (1 - alpha, alpha) if alpha >= 0 else (1, 1)
    for s, (sign, weight) in enumerate(zip(SIGNS, weights, strict=True)):
        x_t, cells = samples[sign].draw()
        logits = x_t if sign == "positives" else -x_t
        parts = {
            "level": cells // len(class_names),
            "class": cells % len(class_names),
            "score bucket": torch.bucketize(
                logits, torch.tensor(SCORE_BORDERS).logit(), right=True
            ),
        }
        per_sample = weight * samples[sign].seen / max(1, len(x_t))
        for g, gamma in enumerate(gammas):
            for q, values in enumerate(_loss_and_slope(x_t, gamma)):
                for part, index in parts.items():
                    total = torch.bincount(index, values.double(), minlength=len(names[part]))
                    sums[part][q, g, s] = per_sample * total.numpy()
    shares = {}
    for part, values in sums.items():
        whole = values.sum(axis=(2, 3), keepdims=True)
        loss, gradient = values / np.where(whole > 0, whole, 1)
        shares[part] = LossShares(names[part], loss, gradient)
    return shares


def _loss_and_slope(x_t: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """FL, unweighted, and |dFL/dx|."""
    x_t = x_t.detach().requires_grad_()
    loss = focal_loss(x_t, gamma)
    (slope,) = torch.autograd.grad(loss.sum(), x_t)
    return loss.detach(), slope.abs()


def draw_loss_shares(
    parts: Mapping[str, LossShares], gammas: Sequence[float], alpha: float, out_png: Path
) -> None:
    """Draw a column for each kind of part: shares of the loss above, of the gradient below.

    A bar is a γ. Its lower, filled segment belongs to negatives, the hatched one to positives. Of
    many classes the picture shows those that hold most, and the sum of the others.

    Args:
        parts: of :func:`loss_shares`.
        gammas, alpha: what it was given.
        out_png: the file to write.
    """
    shown = {kind: _largest(shares) for kind, shares in parts.items()}
    widths = [2 + len(shares.names) for shares in shown.values()]
    figure = Figure(figsize=(16, 8), dpi=DPI, layout="constrained")
    rows = figure.subplots(2, len(shown), squeeze=False, sharex="col", width_ratios=widths)
    for row, quantity in zip(rows, ("loss", "gradient"), strict=True):
        for axes, (kind, shares) in zip(row, shown.items(), strict=True):
            style_axes(axes, f"{quantity} by {kind}")
            _draw_bars(axes, 100 * getattr(shares, quantity))
            axes.set_xticks(range(len(shares.names)), shares.names)
            if kind != "level":
                axes.tick_params(axis="x", rotation=40)
        row[0].set_ylabel(f"share of the {quantity}, %")

    handles = [
        Patch(color=color, label=f"γ = {gamma:g}")
        for gamma, color in zip(gammas, cycle(SERIES_COLORS))
    ]
    handles.append(Patch(color="#777777", label="negatives"))
    handles.append(Patch(fc="#dddddd", ec="#777777", hatch="////", label="positives"))
    weights = f"α = {alpha:g}" if alpha >= 0 else "not weighted by α"
    figure.legend(
        handles=handles,
        title=f"shares of the whole focal loss, {weights}",
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    figure.savefig(out_png)


def _draw_bars(axes: Axes, percent: np.ndarray) -> None:
    """Stacked bars of (G, 2, C) shares."""
    width = 0.84 / len(percent)
    for i, ((negatives, positives), color) in enumerate(zip(percent, cycle(SERIES_COLORS))):
        x = np.arange(len(negatives)) + (i - (len(percent) - 1) / 2) * width
        style: dict[str, Any] = {"edgecolor": color, "linewidth": 0.5}
        axes.bar(x, negatives, 0.9 * width, facecolor=color, **style)
        axes.bar(x, positives, 0.9 * width, negatives, facecolor="white", hatch="//////", **style)
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)


def _largest(shares: LossShares) -> LossShares:
    """The same with few names: those that hold most of the loss, and the others as one."""
    names, *values = shares
    if len(names) <= _MAX_NAMES:
        return shares
    order = np.argsort(-shares.loss.sum((0, 1)), kind="stable")
    kept, rest = order[: _MAX_NAMES - 1], order[_MAX_NAMES - 1 :]
    loss, gradient = (
        np.concatenate([x[..., kept], x[..., rest].sum(-1, keepdims=True)], -1) for x in values
    )
    return LossShares([*(names[i] for i in kept), f"{len(rest)} others"], loss, gradient)
