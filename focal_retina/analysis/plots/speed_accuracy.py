"""AP against time, as in the paper's figure 2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..speed_accuracy import (
    PAPER_OTHERS,
    PAPER_RETINANET,
    Measurement,
    upper_envelope,
)
from .style import DPI, SERIES_COLORS, style_axes

_SIZES = (400, 500, 600, 700, 800)  # of the paper's points
_OTHERS_COLOR = "#777777"
# Where a point's size is written, in points: curves near each other on different sides.
_SIZE_OFFSETS = ((3, -13), (-22, 5))
_ENVELOPE: dict[str, Any] = {
    "color": "#bbbbbb",
    "linewidth": 6,
    "solid_capstyle": "round",
    "zorder": 1,
}

_Point = tuple[float, float]


def draw_speed_accuracy(measurements: Sequence[Measurement], out_png: Path) -> None:
    """Draw the measured runs, and the paper's points in a panel of their own.

    (They come from another GPU and perhaps from other data: one panel would compare them.)

    Args:
        measurements: at least one.
        out_png: the file to write.
    """
    figure = Figure(figsize=(13, 5.5), dpi=DPI, layout="constrained")
    measured, paper = figure.subplots(1, 2)
    curves: dict[str, dict[int, _Point]] = {}
    for m in sorted(measurements, key=lambda m: m.size):
        curves.setdefault(m.run, {})[m.size] = (m.milliseconds, m.metrics["AP"])
    devices = ", ".join(sorted({m.device for m in measurements}))
    datasets = ", ".join(sorted({m.dataset for m in measurements}))
    _draw_curves(measured, curves, [])
    style_axes(measured, f"measured: {datasets}, {devices}")

    in_paper = {
        name: dict(zip(_SIZES, points, strict=True)) for name, points in PAPER_RETINANET.items()
    }
    _draw_curves(paper, in_paper, list(PAPER_OTHERS.values()))
    for name, point in PAPER_OTHERS.items():
        _note(paper, name, point, (6, -10), _OTHERS_COLOR)
    style_axes(paper, "the paper: COCO test-dev, M40")
    figure.savefig(out_png)


def _draw_curves(
    axes: Axes, curves: Mapping[str, Mapping[int, _Point]], others: Sequence[_Point]
) -> None:
    """A curve for each name, a marker for each size, and the envelope of all points behind."""
    points = [point for curve in curves.values() for point in curve.values()]
    envelope = upper_envelope([*points, *others])
    axes.plot(*zip(*envelope, strict=True), label="upper envelope", **_ENVELOPE)
    if others:
        axes.plot(*zip(*others, strict=True), "s", color=_OTHERS_COLOR, label="other systems")
    for i, (name, curve) in enumerate(curves.items()):
        color = SERIES_COLORS[i % len(SERIES_COLORS)]
        axes.plot(*zip(*curve.values(), strict=True), "o-", color=color, label=name)
        for size, point in curve.items():
            _note(axes, str(size), point, _SIZE_OFFSETS[i % 2], color)
    axes.set(xlabel="inference time, ms an image", ylabel="COCO box AP, %")
    axes.margins(0.1)
    axes.legend(frameon=False, loc="lower right")


def _note(axes: Axes, text: str, point: _Point, offset: _Point, color: str) -> None:
    axes.annotate(text, point, offset, textcoords="offset points", fontsize=8, color=color)
