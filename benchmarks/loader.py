"""JPEG files to training samples, in one process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from detectron2.data import DatasetMapper

from focal_retina.data.mapper import build_train_mapper

from .inputs import Size, make_cfg, write_jpegs
from .timing import Case

SIZES = (Size(16, 480, 640, 80),)
# Shortest sides that training resizes to: the zoo's, which enlarge, and one that shrinks.
SHORTEST_SIDES = ((640, 672, 704, 736, 768, 800), (240,))


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The mapper on OpenCV and Detectron2's default mapper, each of which maps all the images."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            records = write_jpegs(size, Path(folder))
            for sides in SHORTEST_SIDES:
                ours, stock = batches_of_both(records, size, sides)
                title = (
                    f"{size.images} JPEGs of {size.width} × {size.height} px "
                    f"to shortest side {'/'.join(map(str, sides))}"
                )
                yield title, {"ours, opencv": ours, "Detectron2": stock}


def batches_of_both(
    records: list[dict], size: Size, shortest_sides: tuple[int, ...]
) -> list[Callable[[], list[dict]]]:
    """By the mapper on OpenCV and by Detectron2's, functions that map the next ``size.images``
    images at each call."""
    cfg = make_cfg(size, torch.device("cpu")).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = shortest_sides
    cfg.INPUT.MAPPER = "opencv"
    mappers = build_train_mapper(cfg), DatasetMapper(cfg, is_train=True)
    return [partial(_next_batch, mapper, cycle(records), size.images) for mapper in mappers]


def _next_batch(mapper: Callable[[dict], dict], records: Iterator[dict], size: int) -> list[dict]:
    return [mapper(next(records)) for _ in range(size)]
