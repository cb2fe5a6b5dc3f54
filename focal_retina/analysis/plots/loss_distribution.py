"""Where the loss is: the paper's figure 4, and the parts that hold it."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..loss_distribution import LossCdf, LossShares
from .style import DPI, SERIES_COLORS, style_axes

_MAX_NAMES = 12  # more classes than this go into one part, "others"


def draw_loss_cdfs(
    cdfs: Mapping[str, Mapping[float, LossCdf | None]],
    num_samples: Mapping[str, int],
    out_png: Path,
) -> None:
    """Draw figure 4, positives on the left; below, the same from the side of the hardest samples.

    Args:
        cdfs: sign -> γ -> curve, None where there is no loss.
        num_samples: sign -> how many samples there are.
        out_png: the file to write.
    """
    figure = Figure(figsize=(11, 8), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2)
    for sign, (above, below) in zip(("positives", "negatives"), axes.T, strict=True):
        style_axes(above, f"{num_samples[sign]:,} {sign}")
        style_axes(below, f"the hardest {sign}")
        above.set(xlabel=f"fraction of {sign}, from low to high loss", ylabel="cumulative loss")
        below.set(xlabel=f"fraction of {sign}, hardest first", ylabel="their share of the loss")
        for (gamma, cdf), color in zip(cdfs[sign].items(), cycle(SERIES_COLORS)):
            if cdf is not None:
                style = {"color": color, "label": f"γ = {gamma:g}", "linewidth": 1.8}
                samples, loss = np.array(cdf.samples), np.array(cdf.loss)
                above.plot(samples, loss, **style)
                below.plot(1 - samples, 1 - loss, **style)
        above.set(xlim=(0, 1), ylim=(0, 1.02))
        below.set(xscale="log", xlim=(min(0.1, 1 / max(1, num_samples[sign])), 1), ylim=(0, 1.02))
        if above.lines:
            above.legend(frameon=False, loc="upper left")
            below.legend(frameon=False, loc="upper left")
        else:
            for panel in (above, below):
                panel.text(0.5, 0.5, f"no loss of {sign}", transform=panel.transAxes, ha="center")
    figure.savefig(out_png)


def draw_loss_shares(
    parts: Mapping[str, LossShares], gammas: Sequence[float], alpha: float, out_png: Path
) -> None:
    """Draw for each kind of part a column: shares of the loss above, of the gradient below.

    A bar is a γ; its lower segment belongs to negatives, the light one on top to positives. Of
    many classes those that hold most are shown and the rest is summed.

    Args:
        parts: "level", "class" and the like -> shares.
        gammas: G of them.
        alpha: to be told in the title.
        out_png: the file to write.
    """
    shown = {kind: _largest(shares) for kind, shares in parts.items()}
    widths = [2 + len(shares.names) for shares in shown.values()]
    figure = Figure(figsize=(16, 8), dpi=DPI, layout="constrained")
    rows = figure.subplots(2, len(shown), squeeze=False, sharex="col", width_ratios=widths)
    for row, quantity in zip(rows, ("loss", "gradient"), strict=True):
        for axes, (kind, shares) in zip(row, shown.items(), strict=True):
            style_axes(axes, f"{quantity} by {kind}")
            _draw_bars(axes, np.array(getattr(shares, quantity)))
            rotation = 45 if kind != "level" else 0
            axes.set_xticks(
                range(len(shares.names)),
                shares.names,
                rotation=rotation,
                ha="right" if rotation else "center",
                rotation_mode="anchor",
            )
        row[0].set_ylabel(f"share of the {quantity}, %")

    handles = [
        Patch(color=color, label=f"γ = {gamma:g}")
        for gamma, color in zip(gammas, cycle(SERIES_COLORS))
    ]
    handles += [Patch(color="#777777", label="negatives"), Patch(**_POSITIVES, label="positives")]
    weights = f"α = {alpha:g}" if alpha >= 0 else "not weighted by α"
    figure.legend(
        handles=handles,
        title=f"shares of the whole focal loss, {weights}",
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    figure.savefig(out_png)


_POSITIVES: dict[str, Any] = {"facecolor": "#dddddd", "edgecolor": "#777777", "hatch": "////"}


def _draw_bars(axes: Axes, shares: np.ndarray) -> None:
    """Stacked bars of (G, 2, C) shares."""
    width = 0.84 / len(shares)
    for i, (negatives, positives) in enumerate(100 * shares):
        x = np.arange(len(negatives)) + (i - (len(shares) - 1) / 2) * width
        color = SERIES_COLORS[i % len(SERIES_COLORS)]
        axes.bar(x, negatives, 0.9 * width, color=color, edgecolor=color, linewidth=0.5)
        axes.bar(
            x,
            positives,
            0.9 * width,
            bottom=negatives,
            facecolor="white",
            edgecolor=color,
            hatch="//////",
            linewidth=0.5,
        )
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)


def _largest(shares: LossShares) -> LossShares:
    """The same with few names: those that hold most of the loss, and the rest as one."""
    if len(shares.names) <= _MAX_NAMES:
        return shares
    order = np.argsort(-np.array(shares.loss).sum((0, 1)), kind="stable")
    kept, rest = order[: _MAX_NAMES - 1], order[_MAX_NAMES - 1 :]

    def shorten(values: list) -> list:
        array = np.array(values)
        return np.concatenate(
            [array[..., kept], array[..., rest].sum(-1, keepdims=True)], -1
        ).tolist()

    return LossShares(
        [*(shares.names[i] for i in kept), f"{len(rest)} others"],
        shorten(shares.samples),
        shorten(shares.loss),
        shorten(shares.gradient),
    )
