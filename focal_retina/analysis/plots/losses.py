"""Losses over p_t or x_t."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..loss_shapes import LossFigure
from .style import DPI, SERIES_COLORS, style_axes

_Y_LABELS = {"loss": "loss", "gradient": "derivative of the loss by $x_t$"}
_LEGEND_PLACES: dict[str, Any] = {
    "loss": "upper right",
    "gradient": "lower right",
}  # where the curves are not
_DASHES = ("-", "--", ":")


def draw_loss_figure(data: LossFigure, out_png: Path) -> None:
    """Draw the figure's curves: a colour for each family, a dash for each variant.

    Args:
        data: as :func:`~focal_retina.analysis.loss_shapes.figures` makes them; at most 7 families
            of 3 variants.
        out_png: the file to write.
    """
    families = dict.fromkeys(curve.family for curve in data.curves)
    variants = dict.fromkeys(curve.variant for curve in data.curves)
    colors = dict(zip(families, SERIES_COLORS, strict=False))
    dashes: dict[str, Any] = dict(zip(variants, _DASHES, strict=False))

    figure = Figure(figsize=(6.5, 4.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=data.x_label, ylabel=_Y_LABELS[data.quantity])
    style_axes(axes, data.title)
    for curve in data.curves:
        axes.plot(
            data.x,
            getattr(curve, data.quantity),
            color=colors[curve.family],
            linestyle=dashes[curve.variant],
            linewidth=1.8,
        )
    axes.margins(x=0)
    if data.quantity == "loss":
        axes.set_ylim(bottom=0)

    handles = [Line2D([], [], color=color, label=family) for family, color in colors.items()]
    handles += [
        Line2D([], [], color="black", linestyle=dash, label=variant)
        for variant, dash in dashes.items()
        if variant
    ]
    axes.legend(
        handles=handles,
        frameon=False,
        loc=_LEGEND_PLACES[data.quantity],
        ncols=1 + (len(variants) > 1),
    )
    figure.savefig(out_png)
