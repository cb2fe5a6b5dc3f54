"""The generated data set: how an image is made, and shapes in COCO format, written at first use.

An image is laid out, painted and photographed, as float32 (H, W, 3), RGB in [0, 1]. Image i of a
split is a pure function of (parameters, split, i); another release of NumPy or Pillow may change a
pixel. Points are (x, y), and pixel (i, j) covers [i, i+1] × [j, j+1], as in COCO.

A split is a folder, `focal_shapes/v2-9c2f41d0/train`, named after the generator's version and a
digest of the parameters. It appears by one rename: where it exists, it is complete.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from ..files import write_json, write_once

# To be raised with every change that alters an image or a box, so that old data are not used.
GENERATOR_VERSION = 2
SPLITS = ("train", "val", "test")
DISTRACTOR = -1  # the label of a shape of no class
_SUPERSAMPLING = 4
Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Everything that decides the data set's content. Lengths in pixels, colours in [0, 1]."""

    seed: int = 2017
    num_train: int = 2000
    num_val: int = 300
    num_test: int = 300
    image_sizes: tuple[tuple[int, int], ...] = ((160, 128), (128, 160))  # (width, height)
    empty_fraction: float = 0.06  # share of images without any object
    max_objects: int = 6  # the other images hold 1 … max_objects, with equal chance
    min_size: float = 12.0  # sqrt(box area) is log-uniform: small objects are the many
    max_size: float = 60.0
    max_stretch: float = 1.25  # along one axis, before the turn
    max_turn: float = 30.0  # from the upright position, in degrees
    max_truncation: float = 0.15  # share of a box's side that the image's border may cut off
    min_visible: float = 0.6  # share of a shape's area inside the image that nothing hides
    max_distractors: int = 4  # shapes of no class: 0 … max_distractors, with equal chance
    max_lines: int = 4  # thin lines in the background, 0 … max_lines with equal chance
    min_contrast: float = 0.45  # RGB distance sought between a shape and what it covers
    noise: float = 0.025  # largest standard deviation of the sensor noise
    jpeg_quality: int = 92


def _polygon(turns: np.ndarray, radius: float | np.ndarray = 1.0) -> np.ndarray:
    """Points (P, 2) round the centre, `turns` clockwise from the top, 1 being once round."""
    angles = 2 * np.pi * turns
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.reshape(radius, (-1, 1))


_ROUND, _SQUARE = np.arange(48) / 48, _polygon(np.arange(4) / 4 + 0.125)
# The classes, upright, in the order of their ids. A second contour is a hole.
_OUTLINES = {
    "ring": (_polygon(_ROUND), _polygon(_ROUND, 0.55)),
    "triangle": (_polygon(np.arange(3) / 3),),
    "square": (_SQUARE,),
    "star": (_polygon(np.arange(10) / 10, np.tile([1.0, 0.42], 5)),),
}
CLASS_NAMES = tuple(_OUTLINES)


def _distractor(rng: Rng) -> np.ndarray:
    """The contour of a shape of no class: a bar, a blob, a piece of a ring or of a disc."""
    kind = rng.integers(4)
    if kind == 0:
        return _SQUARE * (1, rng.uniform(0.12, 0.3))
    if kind == 1:
        waves = [np.sin(2 * np.pi * (k * _ROUND + rng.random())) for k in (2, 3)]
        return _polygon(_ROUND, 1 + rng.uniform(0.1, 0.3, 2) @ waves)
    turns = np.linspace(0, rng.uniform(0.25, 0.6), 24)
    inner = rng.uniform(0.65, 0.85) if kind == 2 else 0.0
    return np.concatenate([_polygon(turns), _polygon(turns[::-1], inner)])


class Shape(NamedTuple):
    """A placed shape. Its box covers all that is inside the frame, hidden or not."""

    label: int  # class index, or DISTRACTOR
    box: tuple[float, float, float, float]  # (x, y, width, height), exact to 1 / _SUPERSAMPLING
    area: float
    window: tuple[slice, slice]
    alpha: np.ndarray  # (h, w), coverage of the window's pixels


def _draw_outline(rng: Rng, config: ShapesConfig, label: int) -> list[np.ndarray]:
    """Contours in pixels, stretched and turned; x and y begin at 0."""
    outline = (_distractor(rng),) if label == DISTRACTOR else _OUTLINES[CLASS_NAMES[label]]
    size = math.exp(rng.uniform(math.log(config.min_size), math.log(config.max_size)))
    stretch = (config.max_stretch ** rng.uniform(-1, 1), 1)
    angle = rng.uniform(-1, 1) * (math.pi if label == DISTRACTOR else math.radians(config.max_turn))
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    contours = [(contour * stretch) @ turn for contour in outline]
    low, extent = contours[0].min(axis=0), np.ptp(contours[0], axis=0)
    return [(contour - low) * (size / math.sqrt(extent.prod())) for contour in contours]


def _rasterise(label: int, contours: list[np.ndarray], frame: tuple[int, int]) -> Shape:
    left, top = np.floor(contours[0].min(axis=0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(contours[0].max(axis=0)).astype(int), frame)
    width, height = int(right - left) * _SUPERSAMPLING, int(bottom - top) * _SUPERSAMPLING
    mask = Image.new("L", (width, height))
    for fill, contour in zip((255, 0), contours, strict=False):
        points = np.round((contour - (left, top)) * _SUPERSAMPLING - 0.5)
        ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill)
    x0, y0, x1, y1 = (edge / _SUPERSAMPLING for edge in mask.getbbox() or ())
    box = (float(left + x0), float(top + y0), x1 - x0, y1 - y0)
    alpha = np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255
    return Shape(label, box, float(alpha.sum()), (slice(top, bottom), slice(left, right)), alpha)


def lay_out(rng: Rng, config: ShapesConfig, frame: tuple[int, int]) -> list[Shape]:
    """Place objects and distractors in a frame (width, height); later ones lie on top."""
    number = 0 if rng.random() < config.empty_fraction else 1 + rng.integers(config.max_objects)
    labels = rng.integers(len(CLASS_NAMES), size=number).tolist()
    labels += [DISTRACTOR] * rng.integers(config.max_distractors + 1)
    rng.shuffle(labels)
    shapes: list[Shape] = []
    free = np.ones(frame[::-1], np.float32)  # what no shape covers yet
    for label in labels:  # from the top to the bottom, so that no shape hides an earlier one
        contours = _draw_outline(rng, config, label)
        extent = contours[0].max(axis=0)
        slack = config.max_truncation * extent
        for _ in range(20):  # after which a crowded frame goes without the shape
            corner = rng.uniform(-slack, np.maximum(frame - extent + slack, 0))
            shape = _rasterise(label, [contour + corner for contour in contours], frame)
            if (free[shape.window] * shape.alpha).sum() >= config.min_visible * shape.area:
                free[shape.window] *= 1 - shape.alpha
                shapes.append(shape)
                break
    return shapes[::-1]


def _noise(rng: Rng, size: tuple[int, ...], cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise (H, W) = `size` in about [0, 1]: a random grid of (x, y) cells, interpolated."""
    grid = rng.random((cells[1] + 1, cells[0] + 1), np.float32)
    return np.asarray(Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _surface(rng: Rng, size: tuple[int, int]) -> np.ndarray:
    """Noise whose amplitude falls with frequency, as natural images have it, in one colour."""
    roughness, stretch = rng.uniform(0.45, 0.75), 3 ** rng.uniform(-1, 1)
    field = np.zeros(size, np.float32)
    for octave in range(1, int(math.log2(min(size)))):
        cells = (math.ceil(2**octave * stretch), math.ceil(2**octave / stretch))
        field += roughness**octave * _noise(rng, size, cells)
    field = (field - field.min()) / np.ptp(field)
    if rng.random() < 0.5:  # veins and grain, as of marble, wood and cloth
        field = 0.5 + 0.5 * np.sin(rng.uniform(10, 40) * field)
    # The brightness of one material varies far more than its hue.
    base = rng.uniform(0.35, 0.8) * (0.6 + 0.5 * rng.random(3, np.float32))
    contrast = math.exp(rng.uniform(0.1, 0.35))
    dark, bright = base / contrast, base * contrast + 0.05 * rng.standard_normal(3, np.float32)
    return dark + field[..., None] * (bright - dark)


def _paint_background(rng: Rng, size: tuple[int, int], num_lines: int) -> np.ndarray:
    """One surface, or two that meet at an edge, and thin lines (wires, cracks, seams)."""
    image = _surface(rng, size)
    if rng.random() < 0.5:
        edge = (_noise(rng, size, (1, 1)) - 0.5) * max(size)
        image += np.clip(edge, 0, 1)[..., None] * (_surface(rng, size) - image)
    for _ in range(num_lines):
        mask = Image.new("L", (2 * size[1], 2 * size[0]))  # drawn twice as large, for its edges
        ends = (rng.uniform(-0.1, 1.1, (2, 2)) * mask.size).ravel().tolist()
        ImageDraw.Draw(mask).line(ends, fill=255, width=int(rng.integers(2, 5)))
        alpha = np.asarray(mask.reduce(2), np.float32)[..., None] * (rng.uniform(0.3, 0.9) / 255)
        image += alpha * (rng.random(3, np.float32) - image)
    return image


def _paint(rng: Rng, image: np.ndarray, shape: Shape, min_contrast: float) -> None:
    """Draw a shape into the image, in place, with a colour and a shading of its own."""
    canvas, alpha = image[shape.window], shape.alpha[..., None]
    covered = (canvas * alpha).sum(axis=(0, 1)) / alpha.sum()
    for _ in range(6):
        color = rng.random(3, np.float32)
        if np.linalg.norm(color - covered) >= min_contrast:
            break
    shading = 1 + rng.uniform(0, 0.8) * (_noise(rng, shape.alpha.shape, (3, 3)) - 0.5)
    canvas += alpha * (color * shading[..., None] - canvas)


def _photograph(rng: Rng, image: np.ndarray, noise: float) -> np.ndarray:
    """Exposure, uneven light, tint, defocus and sensor noise; returns uint8."""
    size = image.shape[:2]
    light = rng.uniform(0.8, 1) + rng.uniform(0, 0.8) * (_noise(rng, size, (1, 1)) - 0.5)
    tint = 0.9 + 0.2 * rng.random(3, np.float32)
    image = np.clip(image * light[..., None] * tint, 0, 1) ** rng.uniform(0.8, 1.3)
    picture = Image.fromarray((image * 255).astype(np.uint8))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    grain = rng.standard_normal((*size, 1), np.float32) * (rng.uniform(25, 255) * noise)
    return (np.clip(np.asarray(picture) + grain, 0, 255) + 0.5).astype(np.uint8)


def render_scene(config: ShapesConfig, split: str, index: int) -> tuple[np.ndarray, list[Shape]]:
    """Image `index` of one of SPLITS, uint8 RGB (H, W, 3), and its objects, the top one last."""
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
    width, height = config.image_sizes[rng.integers(len(config.image_sizes))]
    image = _paint_background(rng, (height, width), int(rng.integers(config.max_lines + 1)))
    shapes = lay_out(rng, config, (width, height))
    for shape in shapes:
        _paint(rng, image, shape, config.min_contrast)
    return _photograph(rng, image, config.noise), [s for s in shapes if s.label != DISTRACTOR]


def split_directory(config: ShapesConfig, split: str, root: Path) -> Path:
    """The folder of one split, below the folder `root` of all data sets."""
    parameters = json.dumps([CLASS_NAMES, asdict(config)], sort_keys=True)
    digest = hashlib.sha256(parameters.encode()).hexdigest()[:8]
    return root / "focal_shapes" / f"v{GENERATOR_VERSION}-{digest}" / split


def generate_split(config: ShapesConfig, split: str, root: Path) -> Path:
    """Write one split, unless it is there already, and return its folder."""
    target = split_directory(config, split, root)
    try:
        write_once(target, partial(_write_split, config, split))
    except OSError as error:
        raise OSError(
            f"the generated data set cannot be written to {target}: {error.strerror or error}; "
            "the environment variable DETECTRON2_DATASETS names another folder for data sets"
        ) from error
    return target


def _write_split(config: ShapesConfig, split: str, directory: Path) -> None:
    (directory / "images").mkdir()
    images, annotations = [], list[dict]()
    numbers = range(getattr(config, f"num_{split}"))
    for number in tqdm(numbers, f"generating {split} images", unit="image"):
        pixels, objects = render_scene(config, split, number)
        name, (height, width) = f"{number:06d}.jpg", pixels.shape[:2]
        Image.fromarray(pixels).save(directory / "images" / name, quality=config.jpeg_quality)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for shape in objects:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + shape.label}
            annotations.append({**ids, "bbox": shape.box, "area": shape.area, "iscrowd": 0})
    content = {
        "info": {"version": str(GENERATOR_VERSION), "parameters": asdict(config)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)],
    }
    write_json(directory / "annotations.json", content, indent=None)


# Positive anchors are as rare as on COCO, with the quickstart's anchors: 9 of 14,400.
_SPARSE = ShapesConfig(
    num_train=1200,
    image_sizes=((320, 256), (256, 320)),
    max_objects=3,
    max_size=40.0,
    max_distractors=12,
    max_lines=10,
)
_DATA_SETS = {"focal_shapes": ShapesConfig(), "sparse_shapes": _SPARSE}


def _load_split(config: ShapesConfig, split: str, root: Path, name: str) -> list[dict]:
    folder = generate_split(config, split, root)
    return load_coco_json(folder / "annotations.json", folder / "images", name)


def register_shapes(data_sets: Mapping[str, ShapesConfig] = _DATA_SETS) -> None:
    """Register NAME_train, NAME_val and NAME_test of each data set. A split is generated below
    DETECTRON2_DATASETS (default: `datasets`) when Detectron2 first asks for its records."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    for (prefix, config), split in itertools.product(data_sets.items(), SPLITS):
        name, directory = f"{prefix}_{split}", split_directory(config, split, folder)
        DatasetCatalog.register(name, partial(_load_split, config, split, folder, name))
        MetadataCatalog.get(name).set(
            json_file=str(directory / "annotations.json"),
            image_root=str(directory / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
            generated=True,  # the files need not be there yet
        )
