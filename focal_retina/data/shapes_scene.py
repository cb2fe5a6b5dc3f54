"""Scenes of the generated shapes data set: how an image is made.

Image `i` of a split is a pure function of (parameters, split, i): neither the other images nor the
number of processes matter. (Between two releases of NumPy or OpenCV a pixel may differ.)

Boxes are amodal: a box covers the whole object inside the image frame, also the part that another
object hides. No object may lose more than `1 - ShapesConfig.min_visible` of its area that way.

An image is float32 (H, W, 3), RGB in [0, 1]; a contour is (P, 2) points (x, y), where pixel (i, j)
covers [i, i+1] × [j, j+1], as COCO's boxes have it.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .shapes_background import (
    coordinates,
    develop,
    draw_lines,
    paint_background,
    random_color,
    value_noise,
)
from .shapes_config import SPLITS, ShapesConfig
from .shapes_outlines import CLASS_NAMES, CLASS_OUTLINES, DISTRACTORS, Outline, Rng

_SUPERSAMPLING = 4
_SHADOW_MARGIN = 6  # pixels round a shape that its shadow may reach
_PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class SceneObject:
    """A labelled object: class index, box (x, y, width, height) in pixels, area in pixels²."""

    label: int
    box: tuple[float, float, float, float]
    area: float


@dataclass(frozen=True, eq=False)
class _Sprite:
    """A placed shape. `alpha` (h, w) is its coverage in the image's `window`."""

    window: tuple[slice, slice]
    alpha: np.ndarray
    box: tuple[float, float, float, float]
    area: float


def _place(
    rng: Rng,
    config: ShapesConfig,
    outline: Outline,
    size: float,
    angle: float,
    frame: tuple[int, int],
) -> _Sprite:
    """Stretch an outline at random, turn it by `angle`, scale and shift it, and rasterise it.

    The box is the extent of the rasterised shape inside the image, exact to 1 / _SUPERSAMPLING.
    """
    stretch = config.max_stretch ** rng.uniform(-1, 1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [(contour * (stretch, 1)) @ turn for contour in outline.contours]

    points = np.concatenate(contours)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    scale = size / np.sqrt(extent.prod())
    extent = extent * scale
    slack = config.max_truncation * extent
    corner = rng.uniform(-slack, np.maximum(np.array(frame) - extent + slack, 0))

    margin = _SHADOW_MARGIN + outline.stroke * size
    left, top = np.maximum(np.floor(corner - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corner + extent + margin).astype(int), frame)
    mask = np.zeros(((bottom - top) * _SUPERSAMPLING, (right - left) * _SUPERSAMPLING), np.uint8)
    pixels = [
        np.round(((c - low) * scale + corner - (left, top)) * _SUPERSAMPLING - 0.5).astype(np.int32)
        for c in contours
    ]
    if outline.stroke:
        thickness = max(round(outline.stroke * size * _SUPERSAMPLING), _SUPERSAMPLING)
        cv2.polylines(mask, pixels, False, 1, thickness)
    else:
        cv2.fillPoly(mask, pixels, 1)

    (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis=a))[[0, -1]] for a in (1, 0))
    box = np.array((x0, y0, x1 + 1 - x0, y1 + 1 - y0)) / _SUPERSAMPLING + (left, top, 0, 0)
    return _Sprite(
        window=(slice(top, bottom), slice(left, right)),
        alpha=cv2.resize(
            mask.astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_AREA
        ),
        box=tuple(box.tolist()),
        area=float(mask.sum()) / _SUPERSAMPLING**2,
    )


def _paint(
    rng: Rng, image: np.ndarray, sprite: _Sprite, light: tuple[float, float], contrast: float
) -> None:
    """Draw a sprite with its shadow and its own colour, shading and texture, in place."""
    canvas = image[sprite.window]
    height, width = sprite.alpha.shape
    alpha = sprite.alpha[..., None]

    covered = (canvas * alpha).sum(axis=(0, 1)) / alpha.sum()
    colors = np.stack([random_color(rng, (0.1, 1.0), (0.15, 1.0)) for _ in range(6)])
    distances = np.linalg.norm(colors - covered, axis=1)
    enough = np.flatnonzero(distances >= contrast)
    color = colors[enough[0] if len(enough) else distances.argmax()]

    drop = np.array([[1, 0, -2.5 * light[0]], [0, 1, -2.5 * light[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(sprite.alpha, drop, (width, height)), (0, 0), 1.4)
    canvas *= 1 - rng.uniform(0.1, 0.5) * shadow[..., None]

    x, y = coordinates(width, height)
    slope = light[0] * (x / width - 0.5) + light[1] * (y / height - 0.5)
    shading = 1 + rng.uniform(0, 0.6) * slope
    shading += rng.uniform(0, 0.35) * (value_noise(rng, width, height, (6, 6)) - 0.5)
    canvas += alpha * (np.clip(color * shading[..., None], 0, 1) - canvas)


def _hides_an_object(
    sprite: _Sprite, objects: list[SceneObject], visible: list[np.ndarray], min_visible: float
) -> bool:
    """Whether the sprite would leave too little to be seen of an object already drawn."""
    for scene_object, alpha in zip(objects, visible, strict=True):
        seen = alpha.sum() - (alpha[sprite.window] * sprite.alpha).sum()
        if seen < min_visible * scene_object.area:
            return True
    return False


def render_scene(
    config: ShapesConfig, split: str, index: int
) -> tuple[np.ndarray, list[SceneObject]]:
    """Make one image of the data set.

    Args:
        config: the data set's parameters.
        split: one of SPLITS.
        index: number of the image in its split.

    Returns:
        RGB image (H, W, 3), uint8, and its objects in drawing order (later ones lie on top).
    """
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
    width, height = config.image_sizes[rng.integers(len(config.image_sizes))]
    image = paint_background(rng, width, height)
    draw_lines(rng, image, int(rng.integers(config.max_lines + 1)))

    num_objects = (
        0 if rng.random() < config.empty_fraction else 1 + rng.integers(config.max_objects)
    )
    labels: list[int | None] = rng.integers(len(CLASS_NAMES), size=num_objects).tolist()
    labels += [None] * rng.integers(config.max_distractors + 1)
    rng.shuffle(labels)

    angle = rng.uniform(0, 2 * math.pi)
    light = (math.cos(angle), math.sin(angle))
    objects: list[SceneObject] = []
    visible: list[np.ndarray] = []  # of each object, what is still seen of it: (H, W) in [0, 1]
    for label in labels:
        if label is None:
            outline, max_turn = DISTRACTORS[rng.integers(len(DISTRACTORS))](rng), math.pi
        else:
            outline, max_turn = CLASS_OUTLINES[CLASS_NAMES[label]], math.radians(config.max_turn)
        turn = rng.uniform(-max_turn, max_turn)
        size = np.exp(rng.uniform(np.log(config.min_size), np.log(config.max_size)))
        places = (
            _place(rng, config, outline, size, turn, (width, height))
            for _ in range(_PLACEMENT_TRIES)
        )
        sprite = next(
            (p for p in places if not _hides_an_object(p, objects, visible, config.min_visible)),
            None,
        )
        if sprite is None:  # a crowded image goes without this shape
            continue
        _paint(rng, image, sprite, light, config.min_contrast)
        for alpha in visible:
            alpha[sprite.window] *= 1 - sprite.alpha
        if label is not None:
            objects.append(SceneObject(label, sprite.box, sprite.area))
            alpha = np.zeros((height, width), np.float32)
            alpha[sprite.window] = sprite.alpha
            visible.append(alpha)
    return develop(rng, image, config.noise), objects
