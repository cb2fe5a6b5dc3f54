"""The rows of a sweep in pictures: AP over a quantity and over time, losses over the iterations.

Every picture is drawn for a light or for a dark page. A row has one colour in all of them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ..loss_distribution import LossCdf
from ..training_metrics import Series
from .style import DPI, style_axes
from .themes import Theme, row_colors, themed

_CDF_GAMMAS = (0.0, 2.0)  # cross-entropy, and the paper's focal loss
_LABEL_CHARACTERS = 26
_LABEL_GAP = 0.055  # between labels at the margin, of the axes' height
_DASHES: tuple[tuple[int, tuple[int, ...]], ...] = ((0, ()), (0, (5, 2)), (0, (1, 1)))


class SweepPoint(NamedTuple):
    """One row on the figure's x axis. AP in percent; NaN where there is none.

    Attributes:
        x: of the quantity that the rows differ in.
        paper: the paper's AP.
        seeds: our AP, a value a seed.
        mean: of ``seeds``.
        std: of ``seeds``.
        paper_gain: the paper's AP less that of its reference row.
        gain: the same of ours.
        gain_margin: half-width of its 95 % interval.
    """

    x: float
    paper: float
    seeds: Sequence[float]
    mean: float
    std: float
    paper_gain: float
    gain: float
    gain_margin: float


class TimePoint(NamedTuple):
    """Mean training time of a row in seconds, and its AP with the standard deviation."""

    seconds: float
    ap: float
    std: float


def draw_ap_over_x(
    points: Sequence[SweepPoint],
    *,
    x_label: str,
    log: bool,
    reference: str,
    theme: Theme,
    out_png: Path,
) -> None:
    """Draw AP over x: the paper's, ours, and on one scale how far each is from its reference row.

    The two APs have a panel each, since a small model on small data is far from the paper's.

    Args:
        points: one a row.
        x_label: name of the x axis.
        log: whether the x axis is logarithmic, a zero at its left end.
        reference: name of the row that gains are counted from.
        theme: of the page.
        out_png: the file to write.
    """
    points = sorted(points, key=lambda point: point.x)
    x = [point.x for point in points]
    with themed(theme):
        figure = Figure(figsize=(11, 3.6), dpi=DPI, layout="constrained")
        paper, here, gain = panels = figure.subplots(1, 3, sharex=True)
        of_paper = {"color": theme.paper, "marker": "s", "linestyle": (0, (4, 2))}
        ours = {"color": theme.here, "marker": "o", "capsize": 3}

        style_axes(paper, "AP in the paper, %")
        paper.plot(x, [p.paper for p in points], **of_paper)

        style_axes(here, "AP here, %: mean ± std; dots are seeds")
        here.errorbar(x, [p.mean for p in points], _no_nan(p.std for p in points), **ours)
        for point in points:
            here.plot(
                [point.x] * len(point.seeds),
                point.seeds,
                linestyle="",
                marker=".",
                markersize=5,
                color=theme.text,
                zorder=3,
            )

        style_axes(gain, f"AP less that of {_short(reference)}")
        gain.axhline(0, color=theme.text, linewidth=0.8)
        gain.plot(x, [p.paper_gain for p in points], label="paper", **of_paper)
        gain.errorbar(
            x,
            [p.gain for p in points],
            _no_nan(p.gain_margin for p in points),
            label="here, 95 % interval",
            **ours,
        )
        gain.legend(frameon=False, fontsize=8)

        for axes, numbers, nothing in (
            (paper, [p.paper for p in points], "no numbers in the paper"),
            (here, [p.mean for p in points], "no result"),
        ):
            if not any(map(math.isfinite, numbers)):
                axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center")
                axes.yaxis.set_major_locator(NullLocator())
        if log:
            _scale_logarithmically(paper, x)  # the panels share their x axis
        for axes in panels:
            axes.set_xlabel(x_label)
        figure.savefig(out_png)


def draw_loss_curves(curves: Mapping[str, Series], *, theme: Theme, out_png: Path) -> None:
    """Draw a loss over the iterations, a line a row, its name at the line's end.

    Args:
        curves: name of a row -> its curve; an empty one keeps the row's colour for it.
        theme: of the page.
        out_png: the file to write.
    """
    with themed(theme):
        figure, axes = _figure_with_margin(len(curves))
        style_axes(axes, "total training loss")
        colors = row_colors(len(curves), theme)
        ends = []
        for index, ((name, (iterations, values)), color) in enumerate(
            zip(curves.items(), colors, strict=True)
        ):
            if iterations:
                dashes = _DASHES[index % len(_DASHES)]
                (line,) = axes.plot(iterations, values, color=color, linestyle=dashes)
                line.set(linewidth=1.6, marker="o", markersize=4, markevery=[-1])
                ends.append((name, iterations[-1], values[-1], color))
        finite = [v for _, values in curves.values() for v in values if math.isfinite(v)]
        if finite and min(finite) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left=0)
        axes.set_xlabel("iteration")
        _label_at_margin(axes, ends)
        figure.savefig(out_png)


def draw_ap_against_time(points: Mapping[str, TimePoint], *, theme: Theme, out_png: Path) -> None:
    """Draw AP against training time, a point a row, as the paper's Fig. 2 does for inference.

    Args:
        points: name of a row -> its numbers; NaN keeps the row's colour for it.
        theme: of the page.
        out_png: the file to write.
    """
    with themed(theme):
        figure, axes = _figure_with_margin(len(points))
        style_axes(axes, "AP, %: mean ± std")
        ends = []
        longest = max(p.seconds for p in points.values() if math.isfinite(p.seconds))
        minutes = longest >= 120
        unit = 60 if minutes else 1
        for (name, point), color in zip(
            points.items(), row_colors(len(points), theme), strict=True
        ):
            seconds, ap, std = point
            if math.isfinite(seconds) and math.isfinite(ap):
                axes.errorbar(
                    seconds / unit, ap, _no_nan([std]), color=color, marker="o", capsize=3
                )
                ends.append((name, seconds / unit, ap, color))
        axes.set_xlim(0, 1.1 * longest / unit or 1)
        axes.set_xlabel(f"training and evaluation, {'minutes' if minutes else 'seconds'}")
        _label_at_margin(axes, ends)
        figure.savefig(out_png)


def draw_row_loss_cdfs(
    cdfs: Mapping[str, Mapping[str, Mapping[float, LossCdf | None]]],
    *,
    theme: Theme,
    out_png: Path,
) -> None:
    """Draw what share of the loss the hardest samples hold: a column a sign, a line of panels a γ.

    Args:
        cdfs: name of a row -> sign -> γ -> curve; an empty mapping keeps the row's colour for it.
        theme: of the page.
        out_png: the file to write.
    """
    with themed(theme):
        figure = Figure(figsize=(11, 7.5), dpi=DPI, layout="constrained")
        panels = figure.subplots(len(_CDF_GAMMAS), 2, sharex="col", sharey=True)
        colors = row_colors(len(cdfs), theme)
        for gamma, (positives, negatives) in zip(_CDF_GAMMAS, panels, strict=True):
            for sign, axes in (("positives", positives), ("negatives", negatives)):
                style_axes(axes, f"loss of {sign}, γ = {gamma:g}")
                for index, ((name, of_row), color) in enumerate(
                    zip(cdfs.items(), colors, strict=True)
                ):
                    cdf = of_row.get(sign, {}).get(gamma)
                    if cdf is not None:
                        hardest = [1 - x for x in cdf.samples], [1 - y for y in cdf.loss]
                        dashes = _DASHES[index % len(_DASHES)]
                        axes.plot(*hardest, color=color, linestyle=dashes, label=_short(name))
            positives.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of their loss")
            negatives.set(xscale="log", xlim=(1e-5, 1))
        positives.set_xlabel("fraction of positives, hardest first")
        negatives.set_xlabel("fraction of negatives, hardest first")
        handles = {
            label: handle
            for axes in panels.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
        )
        figure.savefig(out_png)


def _figure_with_margin(num_rows: int) -> tuple[Figure, Axes]:
    """A figure whose right margin has room for a label a row."""
    figure = Figure(figsize=(11, max(4.2, 0.6 + 0.26 * num_rows)), dpi=DPI)
    figure.subplots_adjust(left=0.06, right=0.8, top=0.93, bottom=0.12)
    return figure, figure.add_subplot()


def _label_at_margin(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write names right of the axes, none over another, each with a line to its point.

    Args:
        axes: with its scales set and everything drawn.
        ends: name, x, y and colour of each.
    """
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    heights = [to_axes.transform((x, y))[1] if math.isfinite(y) else 0.0 for _, x, y, _ in ends]
    for (name, x, y, color), height in zip(ends, _spread(heights, _LABEL_GAP), strict=True):
        axes.annotate(
            _short(name),
            (x, y if math.isfinite(y) else axes.get_ylim()[0]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.8,
                "linestyle": ":",
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights in [0, 1], moved apart to at least ``gap``, in the same order.

    Each is pushed up by those below it; where they leave the top, the lot is pushed down again.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    lowest = -math.inf
    for index in order:
        lowest = placed[index] = max(heights[index], lowest + gap)
    highest = 1 + gap
    for index in reversed(order):
        highest = placed[index] = min(placed[index], highest - gap)
    return placed


def _scale_logarithmically(axes: Axes, x: Sequence[float]) -> None:
    """A tick at each x; a zero stands at the left of the smallest positive one."""
    positive = [value for value in x if value > 0]
    if not positive:
        return
    if min(x) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(x))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _no_nan(values: Iterable[float]) -> list[float]:
    """Lengths of error bars, none where there is no number."""
    return [value if math.isfinite(value) else 0.0 for value in values]


def _short(name: str) -> str:
    """As much of a row's name as fits beside a picture; a "$" is no formula."""
    if len(name) > _LABEL_CHARACTERS:
        name = name[: _LABEL_CHARACTERS - 1].rstrip() + "…"
    return name.replace("$", r"\$")
