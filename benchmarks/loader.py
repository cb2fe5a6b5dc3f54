"""A JPEG file to a training sample, in one process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from detectron2.data import DatasetMapper
from detectron2.utils.env import seed_all_rng

from focal_retina.data.mapper import build_train_mapper

from .detectors import make_cfg
from .inputs import Size, write_jpegs
from .timing import Case

SIZES = (Size(16, 480, 640, 80),)
# Shortest sides that training resizes to: the zoo's, which enlarge, and one that shrinks.
SHORTEST_SIDES = ((640, 672, 704, 736, 768, 800), (240,))

Mapper = Callable[[dict], dict]


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The mapper on OpenCV and Detectron2's default mapper, each of which maps all the images; the
    title has the difference of the pixels."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            records = write_jpegs(size, Path(folder))
            for sides in SHORTEST_SIDES:
                ours, stock = make_mappers(size, sides)
                mean, highest = _pixel_difference(ours, stock, records)
                title = (
                    f"{size.images} JPEGs of {size.width} × {size.height} to shortest side "
                    f"{'/'.join(map(str, sides))}; pixels differ by {mean:.2f} of 255, "
                    f"at most {highest:.0f}"
                )
                yield (
                    title,
                    {
                        "ours, opencv": partial(_map_all, ours, records),
                        "Detectron2": partial(_map_all, stock, records),
                    },
                )


def make_mappers(size: Size, shortest_sides: tuple[int, ...]) -> tuple[Mapper, Mapper]:
    """The mapper on OpenCV and Detectron2's own."""
    cfg = make_cfg(size, torch.device("cpu")).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = shortest_sides
    cfg.INPUT.MAPPER = "opencv"
    return build_train_mapper(cfg), DatasetMapper(cfg, is_train=True)


def endless_batches(mapper: Mapper, records: list[dict], size: int) -> Callable[[], list[dict]]:
    """A function that maps the next ``size`` images at each call."""
    endless = cycle(records)
    return lambda: [mapper(next(endless)) for _ in range(size)]


def _map_all(mapper: Mapper, records: list[dict]) -> list[dict]:
    return [mapper(record) for record in records]


def _pixel_difference(first: Mapper, second: Mapper, records: list[dict]) -> tuple[float, float]:
    """Mean and highest absolute difference of the images that two mappers make."""
    differences = []
    for seed, record in enumerate(records):
        images = []
        for mapper in (first, second):
            seed_all_rng(seed)
            images.append(mapper(record)["image"].float())
        differences.append((images[0] - images[1]).abs())
    mean = sum(x.mean() for x in differences) / len(differences)
    return mean.item(), max(x.max() for x in differences).item()
