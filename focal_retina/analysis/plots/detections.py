"""Images with their ground truth and their detections."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data.detection_utils import read_image
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from ..detections import Comparison, LabeledBox
from .style import DPI

# Told apart on photographs, and by readers who confuse red with green.
_COLORS = (
    *("#ffb000", "#00b7ff", "#ff4f9a", "#2bd96b", "#a57bff"),
    *("#ff7a1a", "#00d5c3", "#e8e337", "#ff5c5c", "#9fb6d9"),
)

_CELLS_PER_ROW = 3
_PANEL = 280  # pixels of an image's longer side
_GAP = 4  # between ground truth and detections
_MARGIN = 18  # between pairs, and round the sheet
_CELL_WIDTH = 2 * _PANEL + _GAP + _MARGIN
_HEADER = 92  # title, legend and the columns' names
_LABEL_SIZE = 6.5  # points


class _Panel(NamedTuple):
    """Where an image is drawn: corner and size in pixels of the sheet, and its enlargement."""

    x: int
    y: int
    width: int
    height: int
    scale: float


def draw_detection_sheet(
    comparisons: Sequence[Comparison], class_names: Sequence[str], title: str, out_png: Path
) -> None:
    """Draw images in pairs: ground truth on the left, detections on the right.

    The sheet's size depends on the number of images only in rows: large images are shrunk and small
    ones enlarged. A class has one colour throughout. A label that finds no free place is left out.

    Args:
        comparisons: the images.
        class_names: by label.
        title: above the sheet.
        out_png: the file to write.
    """
    panels, height = _place_panels([c.size for c in comparisons])
    num_columns = min(len(comparisons), _CELLS_PER_ROW)
    width = num_columns * _CELL_WIDTH + _MARGIN

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # a unit is a pixel
    axes.set_axis_off()
    canvas = np.full((height, width, 3), 255, np.uint8)
    colors = _class_colors(len(class_names))
    for comparison, left in zip(comparisons, panels, strict=True):
        image = Image.fromarray(read_image(comparison.file_name, format="RGB"))
        pixels = np.asarray(image.resize((left.width, left.height), Image.Resampling.LANCZOS))
        right = left._replace(x=left.x + _PANEL + _GAP)
        for panel, boxes in ((left, comparison.ground_truth), (right, comparison.detections)):
            canvas[panel.y :, panel.x :][: panel.height, : panel.width] = pixels
            _draw_boxes(axes, panel, boxes, class_names, colors)
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="none", zorder=0)

    for column in range(num_columns):
        for offset, header in ((0, "ground truth"), (_PANEL + _GAP, "detections")):
            x = _MARGIN + column * _CELL_WIDTH + offset + _PANEL / 2
            axes.text(x, _HEADER - 8, header, fontsize=8, color="#666666", ha="center")
    axes.text(_MARGIN, 24, title, fontsize=11, weight="bold", va="center")
    shown = {box.label for c in comparisons for box in (*c.ground_truth, *c.detections)}
    _draw_legend(axes, {class_names[label]: colors[label] for label in sorted(shown)})
    figure.savefig(out_png)


def _draw_legend(axes: Axes, entries: Mapping[str, str]) -> None:
    """Names and their colours in at most two rows; with more names the labels have to do."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    num_columns = int(width // (50 + 7 * max(map(len, entries), default=0)))
    if 0 < len(entries) <= 2 * num_columns:
        axes.legend(
            handles=[Patch(color=color, label=name) for name, color in entries.items()],
            loc="upper left",
            bbox_to_anchor=(_MARGIN / width, 1 - 42 / height),
            borderaxespad=0,
            borderpad=0,
            ncols=num_columns,
            frameon=False,
            fontsize=8,
            handlelength=1,
        )


def _place_panels(sizes: Sequence[tuple[int, int]]) -> tuple[list[_Panel], int]:
    """Left panels of images of the given (width, height), and the height of the whole sheet."""
    panels = []
    top = _HEADER
    for start in range(0, len(sizes), _CELLS_PER_ROW):
        row = []
        for column, (width, height) in enumerate(sizes[start : start + _CELLS_PER_ROW]):
            scale = _PANEL / max(width, height)
            shown = (max(1, round(width * scale)), max(1, round(height * scale)))
            x = _MARGIN + column * _CELL_WIDTH + (_PANEL - shown[0]) // 2
            row.append(_Panel(x, top, *shown, scale))
        tallest = max(panel.height for panel in row)
        panels += [panel._replace(y=top + (tallest - panel.height) // 2) for panel in row]
        top += tallest + _MARGIN
    return panels, top


def _draw_boxes(
    axes: Axes,
    panel: _Panel,
    boxes: Sequence[LabeledBox],
    class_names: Sequence[str],
    colors: Sequence[str],
) -> None:
    taken: list[_Rectangle] = []
    for label, corners, score in boxes:
        x0, x1 = (panel.x + panel.scale * corners[i] for i in (0, 2))
        y0, y1 = (panel.y + panel.scale * corners[i] for i in (1, 3))
        outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colors[label])
        axes.add_patch(outline)
        text = class_names[label] if score is None else f"{class_names[label]} {score:.2f}"
        place = _free_place(text, (x0, y0, x1, y1), panel, taken)
        if place is None:
            continue
        taken.append(place)
        left, top, right, bottom = place
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, color=colors[label]))
        axes.text(left + 2, bottom - 3, text, fontsize=_LABEL_SIZE)


_Rectangle = tuple[float, float, float, float]


def _free_place(
    text: str, box: _Rectangle, panel: _Panel, taken: Sequence[_Rectangle]
) -> _Rectangle | None:
    """A label's place above, below or in its box, inside the panel and off the labels there."""
    letter = _LABEL_SIZE * DPI / 72
    width, height = 4 + 0.58 * letter * len(text), 1.3 * letter
    left = max(panel.x, min(box[0], panel.x + panel.width - width))
    for top in (box[1] - height, box[3], box[1]):
        place = (left, top, left + width, top + height)
        fits = place[2] <= panel.x + panel.width and place[3] <= panel.y + panel.height
        if fits and top >= panel.y and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _class_colors(num_classes: int) -> list[str]:
    """The chosen colours; where they do not suffice, hues that the golden ratio spreads."""
    golden = (math.sqrt(5) - 1) / 2
    further = (to_hex(colorsys.hsv_to_rgb(i * golden % 1, 0.65, 1)) for i in range(num_classes))
    return [*_COLORS] if num_classes <= len(_COLORS) else [*further]
