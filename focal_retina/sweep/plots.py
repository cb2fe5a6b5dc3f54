"""The pictures of a sweep's report, on a ground that reads on a light and on a dark page.

A row has one colour, dash and marker in all of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..figures import DPI, style_axes
from ..figures.loss_cdf import MeasuredCdfs
from ..figures.training import Series, read_metrics
from .grid import Sweep
from .results import RowSummary, compare

_GROUND = "#eef0f3"
_PAPER: dict[str, Any] = {"color": "#8a5a00", "marker": "s", "linestyle": "--", "label": "paper"}
_HERE: dict[str, Any] = {"color": "#0b62c4", "marker": "o", "capsize": 3}
_DASHES, _MARKERS = ("-", "--", ":"), "osD^v"
_CDF_GAMMAS = (0.0, 2.0)  # cross-entropy, and the paper's focal loss


def draw_pictures(
    sweep: Sweep,
    summaries: Sequence[RowSummary],
    losses: Mapping[str, MeasuredCdfs | None],
    directory: Path,
) -> list[str]:
    """Draw what there are numbers for; returns the PNGs' names, relative to ``directory``.

    ``losses`` is where the loss of each row's model is, if that was measured.
    """
    drawings: dict[str, Callable[[Figure], None]] = {}
    if sweep.figure is not None and any(s.ap.n for s in summaries):
        drawings["ap_over_x"] = partial(draw_ap_over_x, sweep=sweep, summaries=summaries)
    curves = {s.row.name: read_loss_curve(s, directory) for s in summaries}
    if any(curve.iterations for curve in curves.values()):
        drawings["loss_curves"] = partial(draw_loss_curves, curves=curves)
    if any(losses.values()):
        drawings["loss_cdfs"] = partial(draw_row_loss_cdfs, losses=losses)

    (directory / "plots").mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        with rc_context({"font.size": 9, "axes.facecolor": _GROUND, "legend.frameon": False}):
            figure = Figure(figsize=(11, 4), dpi=DPI, facecolor=_GROUND, layout="constrained")
            draw(figure)
            figure.savefig(directory / "plots" / f"{name}.png")
    return [f"plots/{name}.png" for name in drawings]


def draw_ap_over_x(figure: Figure, sweep: Sweep, summaries: Sequence[RowSummary]) -> None:
    """Draw the paper's AP and ours over the quantity that the rows differ in, each on its own
    scale, and how far each is from its reference row on one scale."""
    assert sweep.figure is not None
    (reference,) = (s for s in summaries if s.row.name == sweep.reference)
    ordered = sorted(summaries, key=lambda s: s.row.x or 0.0)
    gains = [compare(s, reference) for s in ordered]
    x = [s.row.x or 0.0 for s in ordered]
    paper, here, gain = figure.subplots(1, 3, sharex=True)
    style_axes(paper, "AP in the paper, %")
    paper.plot(x, [s.paper_ap for s in ordered], **_PAPER)

    style_axes(here, "AP here, %: mean ± std; dots are seeds")
    here.errorbar(x, [s.ap.mean for s in ordered], _bars(s.ap.std for s in ordered), **_HERE)
    seeds = [(a, t.metrics.get("AP")) for a, s in zip(x, ordered, strict=True) for t in s.done]
    here.plot(*zip(*seeds, strict=True), "k.", zorder=3)

    style_axes(gain, f"AP less that of {_plain(sweep.reference)}")
    gain.axhline(0, color="black", linewidth=0.8)
    gain.plot(x, [g.paper for g in gains], **_PAPER)
    margins = _bars(g.margin for g in gains)
    margins[ordered.index(reference)] = 0.0  # it differs from itself by 0, without an interval
    gain.errorbar(x, [g.here for g in gains], margins, label="here, 95 % interval", **_HERE)
    gain.legend(fontsize=8)
    for axes in (paper, here, gain):
        axes.set_xlabel(sweep.figure.x_label)


def draw_loss_curves(figure: Figure, curves: Mapping[str, Series]) -> None:
    """Draw the training loss over the iterations, a line a row; an empty curve keeps its colour."""
    axes = figure.add_subplot(xlabel="iteration")
    style_axes(axes, "total training loss")
    for style, (name, curve) in zip(_row_styles(len(curves)), curves.items(), strict=True):
        if curve.iterations:
            axes.plot(*curve, label=_plain(name), markevery=[-1], **style)
    if all(v > 0 or math.isnan(v) for curve in curves.values() for v in curve.values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlim(left=0)
    figure.legend(loc="outside right upper")


def draw_row_loss_cdfs(figure: Figure, losses: Mapping[str, MeasuredCdfs | None]) -> None:
    """Draw what share of the loss the hardest samples hold; an unmeasured row keeps its colour."""
    figure.set_figheight(7.5)
    panels = figure.subplots(len(_CDF_GAMMAS), 2, sharex="col", sharey=True)
    handles = {}
    for gamma, line in zip(_CDF_GAMMAS, panels, strict=True):
        for sign, axes in zip(("positives", "negatives"), line, strict=True):
            style_axes(axes, f"loss of {sign}, γ = {gamma:g}")
            for style, (name, row) in zip(_row_styles(len(losses)), losses.items(), strict=True):
                cdf = row.cdfs[sign].get(gamma) if row else None
                if cdf:
                    hardest = [1 - x for x in cdf.samples], [1 - y for y in cdf.loss]
                    (handles[_plain(name)],) = axes.plot(*hardest, **{**style, "marker": ""})
        line[0].set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of their loss")
        line[1].set(xscale="log", xlim=(1e-5, 1))
    panels[-1][0].set_xlabel("fraction of positives, hardest first")
    panels[-1][1].set_xlabel("fraction of negatives, hardest first")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)


def read_loss_curve(summary: RowSummary, directory: Path) -> Series:
    """total_loss of a row: the mean over the seeds that got as far, failed ones among them, since
    they may show how the training diverged."""
    values: dict[int, list[float]] = {}
    for trial in summary.trials:
        path = directory / trial.directory / "metrics.json"
        # A trial that failed early has no metrics.
        metrics = read_metrics(path) if path.exists() and path.stat().st_size else {}
        for iteration, value in zip(*metrics.get("total_loss", ((), ())), strict=True):
            values.setdefault(iteration, []).append(value)
    iterations = sorted(values)
    return Series(iterations, [fmean(values[iteration]) for iteration in iterations])


def _row_styles(num_rows: int) -> list[dict[str, Any]]:
    """A style a row: colours from dark to light."""
    looks = zip(colormaps["plasma"](np.linspace(0, 0.7, num_rows)), cycle(_DASHES), cycle(_MARKERS))
    return [{"color": color, "linestyle": dashes, "marker": m} for color, dashes, m in looks]


def _bars(values: Iterable[float]) -> list[float]:
    """Lengths of error bars, none where there is no number."""
    return [value if math.isfinite(value) else 0.0 for value in values]


def _plain(name: str) -> str:
    """A "$" in a name is not a formula."""
    return name.replace("$", r"\$")
