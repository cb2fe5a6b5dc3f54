"""JPEG files to training samples, in one process."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper, MapDataset
from detectron2.structures import BoxMode

from focal_retina.data.mapper import build_train_mapper

from .inputs import Size, make_batch, make_cfg
from .timing import Case

# Shortest sides that training resizes to: the zoo's, which enlarge, and one that shrinks.
SHORTEST_SIDES = ((640, 672, 704, 736, 768, 800), (240,))


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The mapper on OpenCV and Detectron2's default mapper, each of which maps all the images."""
    for size, sides in itertools.product(sizes, SHORTEST_SIDES):
        with tempfile.TemporaryDirectory() as folder:
            records = write_jpegs(size, Path(folder))
            cfg = make_cfg(size, torch.device("cpu"))
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAPPER = sides, "opencv"
            mappers = {"ours, opencv": build_train_mapper(cfg)}
            mappers["Detectron2"] = DatasetMapper(cfg, is_train=True)
            title = f"{size.title}, JPEG, to shortest side {'/'.join(map(str, sides))}"
            sets = {name: MapDataset(records, mapper) for name, mapper in mappers.items()}
            yield title, {name: partial(list, x) for name, x in sets.items()}


def write_jpegs(size: Size, folder: Path) -> list[dict]:
    """Write images of smooth noise with 8 objects each; returns Detectron2's records of them."""
    rng, records = np.random.default_rng(0), []
    for index, sample in enumerate(make_batch(size)):
        noise = rng.integers(256, size=(128, 128, 3), dtype=np.uint8)
        image = cv2.resize(noise, (size.width, size.height), interpolation=cv2.INTER_CUBIC)
        path = str(folder / f"{index}.jpg")
        cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        objects = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        annotations = [{"bbox": box, **objects} for box in boxes]
        hw = {"height": size.height, "width": size.width}
        records.append({"file_name": path, **hw, "annotations": annotations})
    return records
