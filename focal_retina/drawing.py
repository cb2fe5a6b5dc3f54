"""Boxes and their labels on an image, drawn by Detectron2's Visualizer, which its users know; and
sheets of such pictures."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

_DPI = 120
_SMALL_BOX = 40  # pixels of a picture


class Outline(NamedTuple):
    """A box to be drawn, in pixels of the image."""

    box: Sequence[float] | Tensor  # x0, y0, x1, y1
    color: str
    label: str = ""
    line_style: str = "-"


def draw_outlines(
    image: np.ndarray, outlines: Iterable[Outline], caption: str = "", *, longer_side: int
) -> np.ndarray:
    """Draw boxes with their labels, the last on top, and a caption in the corner into an image
    (H, W, 3), RGB in [0, 255]. The picture is uint8 (H', W', 3), RGB, its ``longer_side`` given."""
    from detectron2.utils.visualizer import Visualizer  # imports matplotlib, so late

    # An image of 100 megapixels takes a minute to draw.
    step = max(1, max(image.shape[:2]) // (2 * longer_side))
    image = image[::step, ::step]
    # Pad the shorter side to a pixel of the drawing.
    least = math.ceil(max(image.shape[:2]) / longer_side)
    image = np.pad(image, [*((0, max(0, least - x)) for x in image.shape[:2]), (0, 0)], "edge")
    scale = longer_side / max(image.shape[:2])
    visualizer = Visualizer(image, scale=scale)
    for box, color, label, line_style in outlines:
        x0, y0, x1, y1 = (float(x) / step for x in box)
        visualizer.draw_box((x0, y0, x1, y1), alpha=0.9, edge_color=color, line_style=line_style)
        if label:
            # Below a small box, which it would hide, unless the image ends there.
            is_below = (y1 - y0) * scale < _SMALL_BOX and y1 + _SMALL_BOX / scale < image.shape[0]
            place = (x0, y1 if is_below else y0)
            visualizer.draw_text(label, place, color=color, horizontal_alignment="left")
    if caption:
        visualizer.draw_text(caption, (2, 2), color="white", horizontal_alignment="left")
    return visualizer.output.get_image()


def save_sheet(
    pictures: Sequence[np.ndarray], title: str, out_png: Path, *, columns: int, longer_side: int
) -> None:
    """Save pictures, whose ``longer_side`` is given in pixels, row by row under a title."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(pictures)))
    rows = max(1, math.ceil(len(pictures) / columns))
    inches = longer_side / _DPI  # so that a pixel of a picture is about one of the sheet
    figure = Figure((columns * inches, rows * inches), dpi=_DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, picture in itertools.zip_longest(panels, pictures):
        panel.set_axis_off()
        if picture is not None:
            panel.imshow(picture)
    figure.savefig(out_png)
