"""JPEG files to training samples, in one process."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from focal_retina.data.mapper import build_train_mapper

from .inputs import Size, make_batch, make_cfg
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
                cfg = make_cfg(size, torch.device("cpu")).clone()
                cfg.defrost()
                cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAPPER = sides, "opencv"
                mappers = {"ours, opencv": build_train_mapper(cfg)}
                mappers["Detectron2"] = DatasetMapper(cfg, is_train=True)
                title = f"{size.images} JPEGs of {size.width} × {size.height} px to shortest side "
                yield (
                    title + "/".join(map(str, sides)),
                    {name: partial(_map, mapper, records) for name, mapper in mappers.items()},
                )


def write_jpegs(size: Size, folder: Path) -> list[dict]:
    """Write random images with detail at all scales, as photographs have it, with 8 objects each.

    Returns their entries in Detectron2's dataset format.
    """
    rng = np.random.default_rng(0)
    records = []
    for index, sample in enumerate(make_batch(size)):
        image = np.full((size.height, size.width, 3), 128, np.float32)
        for cells in (2, 8, 32, 128):
            noise = rng.standard_normal((cells, cells, 3), dtype=np.float32) * 60 / cells**0.4
            image += cv2.resize(noise, (size.width, size.height), interpolation=cv2.INTER_CUBIC)
        path = str(folder / f"{index}.jpg")
        cv2.imwrite(path, image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        gt = sample["instances"]
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist(), strict=True)
        ]
        hw = {"height": size.height, "width": size.width}
        records.append({"file_name": path, **hw, "annotations": annotations})
    return records


def _map(mapper: Callable[[dict], dict], records: list[dict]) -> list[dict]:
    return [mapper(record) for record in records]
