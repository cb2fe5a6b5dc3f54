"""Pictures as PNG files, each with the numbers that it shows: a file a figure. Matplotlib's
``Figure`` is used without pyplot, so no picture needs a display."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's without the yellow: told apart by readers who confuse red with green.
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Of a size in inches, with a title over all panels."""
    figure = Figure((width, height), dpi=120, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    return figure


def style_axes(axes: Axes, title: str) -> None:
    """Title on the left, a faint grid, no frame at the top and on the right."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
