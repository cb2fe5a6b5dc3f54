"""Pictures for a light and for a dark page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex


class Theme(NamedTuple):
    """Colours of the page that a picture is made for.

    Attributes:
        background: of page and picture.
        text: also of lines that belong to no row.
        paper: of the paper's numbers.
        here: of ours.
        row_colors: the part of the plasma colour map that stands out from the background.
    """

    background: str
    text: str
    paper: str
    here: str
    row_colors: tuple[float, float]


LIGHT = Theme("#ffffff", "#24292f", "#8a5a00", "#0b62c4", (0.0, 0.63))
DARK = Theme("#14181d", "#dfe5ec", "#e8b04a", "#69aef8", (0.4, 1.0))


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """What is drawn in this context has the theme's background and text."""
    rc = {
        "font.size": 9,
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
    }
    with rc_context(rc):  # type: ignore[arg-type]
        yield


def row_colors(num_rows: int, theme: Theme) -> list[str]:
    """A colour a row, from dark to light."""
    positions = np.linspace(*theme.row_colors, max(num_rows, 2))[:num_rows]
    return [to_hex(colormaps["plasma"](position)) for position in positions]
