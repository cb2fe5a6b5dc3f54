"""Which levels, classes and scores hold the focal loss and its gradient.

Shapes: M drawn logits, G gammas, C parts of a whole. Of the dimension 2 negatives come first.
"""

import itertools
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..losses import focal_loss
from . import DPI, SERIES_COLORS, style_axes

SIGNS = ("negatives", "positives")
SCORE_BORDERS = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)  # a score is σ(x)
_MAX_NAMES = 12  # of more parts the picture shows those that hold most


class LogitSample(NamedTuple):
    """Logits of one sign, drawn at random."""

    x_t: Tensor  # fp32 (M,)
    cells: Tensor  # int32 (M,): level · K + class
    seen: int  # how many there were to draw from


class LossShares(NamedTuple):
    """What each part (a level, a class or a score bucket) holds of the whole."""

    names: list[str]  # C
    loss: list  # (G, 2, C): shares of α_t·FL, those of one γ sum to 1
    gradient: list  # (G, 2, C): the same of |d α_t·FL / dx|


def loss_shares(
    samples: Mapping[str, LogitSample],
    gammas: Sequence[float],
    alpha: float,
    level_names: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, LossShares]:
    """What each "level", "class" and "score bucket" holds; 0 where the whole loss is 0.

    ``samples`` holds the logits of each sign, which stand for as many as there were to draw from.
    ``alpha`` weighs positives, and 1 - alpha negatives; < 0: no weights.
    """
    score_borders = torch.tensor(SCORE_BORDERS).logit()
    borders = ("0", *(f"{border:g}" for border in SCORE_BORDERS), "1")
    buckets = [f"{low}–{high}" for low, high in itertools.pairwise(borders)]
    names = {"level": list(level_names), "class": list(class_names), "score bucket": buckets}
    sums = {kind: np.zeros((2, len(gammas), 2, len(its))) for kind, its in names.items()}
    weights = (1 - alpha, alpha) if alpha >= 0 else (1, 1)
    for s, (sign, weight) in enumerate(zip(SIGNS, weights, strict=True)):
        x_t, cells, seen = samples[sign]
        logits = x_t if sign == "positives" else -x_t
        parts = {
            "level": cells // len(class_names),
            "class": cells % len(class_names),
            "score bucket": torch.bucketize(logits, score_borders, right=True),
        }
        x_t = x_t.detach().requires_grad_()
        for g, gamma in enumerate(gammas):
            loss = focal_loss(x_t, gamma)
            (slope,) = torch.autograd.grad(loss.sum(), x_t)
            for q, values in enumerate((loss.detach(), slope.abs())):
                for kind, part in parts.items():
                    total = torch.bincount(part, values.double(), minlength=len(names[kind]))
                    sums[kind][q, g, s] = weight * seen / max(1, len(x_t)) * total.numpy()
    wholes = {kind: x.sum(axis=(2, 3), keepdims=True) for kind, x in sums.items()}
    shares = {kind: x / np.where(wholes[kind] > 0, wholes[kind], 1) for kind, x in sums.items()}
    return {kind: LossShares(names[kind], *x.tolist()) for kind, x in shares.items()}


def draw_loss_shares(
    parts: Mapping[str, LossShares], gammas: Sequence[float], alpha: float, out_png: Path
) -> None:
    """Draw a column for each kind of part: shares of the loss above, of the gradient below.

    A bar is a γ. Its lower, filled segment belongs to negatives, the hatched one to positives.
    """
    widths = [2 + min(_MAX_NAMES, len(shares.names)) for shares in parts.values()]
    figure = Figure(figsize=(16, 8), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, len(parts), squeeze=False, sharex="col", width_ratios=widths)
    colors = list(itertools.islice(cycle(SERIES_COLORS), len(gammas)))
    width = 0.84 / len(gammas)
    for (kind, shares), column in zip(parts.items(), panels.T, strict=True):
        names = np.array(shares.names)
        kept = np.argsort(-np.sum(shares.loss, axis=(0, 1)), kind="stable")[:_MAX_NAMES]
        kept = np.sort(kept)
        title = kind if len(kept) == len(names) else f"{kind}: the largest of {len(names)}"
        for axes, quantity in zip(column, ("loss", "gradient"), strict=True):
            style_axes(axes, f"{quantity} by {title}")
            for g, values in enumerate(100 * np.array(getattr(shares, quantity))[..., kept]):
                x = np.arange(len(kept)) + (g - (len(gammas) - 1) / 2) * width
                style = {"width": 0.9 * width, "edgecolor": colors[g], "linewidth": 0.5}
                axes.bar(x, values[0], facecolor=colors[g], **style)
                axes.bar(x, values[1], bottom=values[0], facecolor="w", hatch="//////", **style)
            axes.grid(axis="x", visible=False)
            axes.set(ylim=(0, None), axisbelow=True, ylabel=f"share of the {quantity}, %")
            axes.set_xticks(range(len(kept)), names[kept], rotation=0 if kind == "level" else 40)
    handles = [Patch(color=c, label=f"γ = {g:g}") for g, c in zip(gammas, colors, strict=True)]
    handles.append(Patch(color="#777777", label="negatives"))
    handles.append(Patch(fc="w", ec="#777777", hatch="//////", label="positives"))
    weights = f"α = {alpha:g}" if alpha >= 0 else "not weighted by α"
    title = f"shares of the whole focal loss, {weights}"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=9, frameon=False)
    figure.savefig(out_png)
