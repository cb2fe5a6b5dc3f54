"""What ``tools/benchmark.py loader`` measures: a JPEG file to a training sample, in one process."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from ..data.mapper import build_train_mapper
from .detectors import make_cfg
from .labeling import make_gt
from .loss import Size
from .timing import Case

DEFAULT_SIZE = Size(16, 480, 640, 80)
# Shortest sides that training resizes to: the zoo's, which enlarge, and one that shrinks.
SHORTEST_SIDES = ((640, 672, 704, 736, 768, 800), (240,))
OBJECTS_PER_IMAGE = 8

Mapper = Callable[[dict], dict]


def comparison_cases(device: torch.device, size: Size = DEFAULT_SIZE) -> Iterator[Case]:
    """The mapper on OpenCV and Detectron2's default mapper, on ``size.images`` generated JPEGs.

    Yields:
        a title, with the difference of the pixels, and the candidates by name, ours first, each of
        which maps all the images.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = jpeg_records(size, Path(folder))
        for sides in SHORTEST_SIDES:
            opencv, stock = mapper_pair(size, sides)
            mean, highest = _pixel_difference(opencv, stock, records)
            title = (
                f"{size.images} JPEGs of {size.width} × {size.height} to shortest side "
                f"{'/'.join(map(str, sides))}; pixels differ by {mean:.2f} of 255, "
                f"at most {highest}"
            )
            yield (
                title,
                {
                    "ours, opencv": partial(_map_all, opencv, records),
                    "Detectron2": partial(_map_all, stock, records),
                },
            )


def mapper_pair(size: Size, shortest_sides: tuple[int, ...]) -> tuple[Mapper, Mapper]:
    """The mapper on OpenCV and Detectron2's own."""
    cfg: CfgNode = make_cfg("FocalRetinaNet", size, torch.device("cpu"))
    cfg.INPUT.MIN_SIZE_TRAIN = shortest_sides
    stock = DatasetMapper(cfg, is_train=True)
    cfg.INPUT.MAPPER = "opencv"
    return build_train_mapper(cfg), stock


def mapped(mapper: Mapper, records: list[dict], batch_size: int) -> Callable[[], list[dict]]:
    """A function that maps the next ``batch_size`` images at each call, without end."""
    endless = cycle(records)
    return lambda: [mapper(next(endless)) for _ in range(batch_size)]


def jpeg_records(size: Size, folder: Path) -> list[dict]:
    """Write random images with detail at all scales, as photographs have it, and describe them."""
    rng = np.random.default_rng(0)
    shape = size.height, size.width
    records = []
    for index in range(size.images):
        image = np.full((*shape, 3), 128, np.float32)
        for cells in (2, 8, 32, 128):
            noise = rng.standard_normal((cells, cells, 3), dtype=np.float32) * 60 / cells**0.4
            image += cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        gt = make_gt(OBJECTS_PER_IMAGE, shape, "cpu", seed=index)
        records.append(
            {
                "file_name": str(path),
                "height": size.height,
                "width": size.width,
                "annotations": [
                    {
                        "bbox": box,
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": label % size.classes,
                        "iscrowd": 0,
                    }
                    for box, label in zip(
                        gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist(), strict=True
                    )
                ],
            }
        )
    return records


def _map_all(mapper: Mapper, records: list[dict]) -> list[dict]:
    return [mapper(record) for record in records]


def _pixel_difference(first: Mapper, second: Mapper, records: list[dict]) -> tuple[float, int]:
    """Mean and highest absolute difference of the images that two mappers make."""
    means, highest = [], 0
    for seed, record in enumerate(records):
        images = []
        for mapper in (first, second):
            seed_all_rng(seed)
            images.append(mapper(record)["image"].int())
        difference = (images[0] - images[1]).abs()
        means.append(difference.float().mean().item())
        highest = max(highest, int(difference.max()))
    return sum(means) / len(means), highest
