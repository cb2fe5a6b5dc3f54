"""What all pictures share."""

from __future__ import annotations

from matplotlib.axes import Axes

__all__ = ["DPI", "style_axes"]

DPI = 120


def style_axes(axes: Axes, title: str) -> None:
    """Title on the left, a faint grid, no frame at the top and on the right."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
