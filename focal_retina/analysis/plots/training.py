"""The course of a training."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..training_metrics import Series
from .style import DPI, style_axes


def draw_training_curves(metrics: Mapping[str, Series], out_png: Path) -> None:
    """Losses, AP where it was evaluated, and learning rate, over the iterations.

    Args:
        metrics: as :func:`~focal_retina.analysis.training_metrics.read_metrics` returns them.
        out_png: the file to write.
    """
    figure = Figure(figsize=(11, 5.5), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    losses, precision, rate = (
        figure.add_subplot(grid[where]) for where in ((slice(None), 0), (0, 1), (1, 1))
    )

    names = sorted(name for name in metrics if name.startswith("loss"))
    _draw_series(
        losses, "training loss", {n: metrics[n] for n in ("total_loss", *names) if n in metrics}
    )
    losses.set_ylim(bottom=0)

    average_precision = {
        name.replace("bbox/", ""): series
        for name, series in metrics.items()
        if name.endswith(("bbox/AP", "bbox/AP50", "bbox/AP75"))
    }
    _draw_series(precision, "COCO box AP, %", average_precision, marker="o")
    for iterations, values in average_precision.values():
        if math.isfinite(values[-1]):  # NaN: nothing to be found in the data set
            precision.annotate(
                f"{values[-1]:.1f}",
                (iterations[-1], values[-1]),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=8,
            )
    precision.set_ylim(0, 100)
    if not average_precision:
        precision.text(0.5, 0.5, "not evaluated", transform=precision.transAxes, ha="center")

    _draw_series(rate, "learning rate", {"lr": metrics["lr"]} if "lr" in metrics else {})
    last = max(series.iterations[-1] for series in metrics.values())
    for axes in (losses, precision, rate):
        axes.set_xlim(0, max(1, last) * 1.05)
    rate.set_ylim(bottom=0)
    losses.set_xlabel("iteration")
    rate.set_xlabel("iteration")
    figure.savefig(out_png)


def _draw_series(axes: Axes, title: str, series: Mapping[str, Series], marker: str = "") -> None:
    style_axes(axes, title)
    for name, (iterations, values) in series.items():
        axes.plot(iterations, values, label=name, marker=marker, linewidth=1.5)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
