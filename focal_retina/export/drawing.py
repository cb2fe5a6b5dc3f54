"""Detections on an image: outlines with class names and scores."""

import colorsys
from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont


def draw_detections(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """
    Args:
        image: (H, W, 3) uint8, BGR; stays as it is.
        instances: with ``pred_boxes``, ``scores`` and ``pred_classes``.
        classes: names, by class index.

    Returns:
        The picture, of the image's size and kind. A class always has the same color; the highest
        scores are drawn last, above the others.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(max(image.shape[:2]) / 400))
    font = ImageFont.load_default(size=6 + 4 * unit)
    boxes = instances.pred_boxes.tensor.tolist()
    rows = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    for box, score, label in reversed(list(rows)):
        color = _color(label)
        draw.rectangle(box, outline=color, width=unit)
        text = f"{classes[label]} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * unit, bottom - top + 2 * unit
        # Above the box where there is room, else inside.
        x = max(0, min(box[0], picture.width - width))
        y = box[1] - height if box[1] >= height else box[1]
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + unit - left, y + unit - top), text, fill="black", font=font)
    return np.asarray(picture)[:, :, ::-1]


def _color(label: int) -> tuple[int, int, int]:
    """A bright color; the golden ratio keeps the hues of any number of classes apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
