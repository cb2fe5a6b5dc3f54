"""What the subjects work on: random anchors, objects, images and files, the same at every run."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, BoxMode, Instances

OBJECTS_PER_IMAGE = 8  # COCO has 7.3 on average


class Size(NamedTuple):
    """Of a batch: images of one size, and classes."""

    images: int
    height: int
    width: int
    classes: int

    @property
    def title(self) -> str:
        return f"{self.images} × {self.height} × {self.width} px, K = {self.classes}"


def make_anchors(image_size: tuple[int, int], device: torch.device | str) -> list[Boxes]:
    """The anchors of Detectron2's RetinaNet on P3…P7: 9 a cell (paper, section 4)."""
    strides = [8, 16, 32, 64, 128]
    generator = DefaultAnchorGenerator(
        sizes=[[4 * stride * 2 ** (k / 3) for k in range(3)] for stride in strides],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=strides,
    ).to(device)
    cells = [[-(-side // stride) for side in image_size] for stride in strides]
    return generator([torch.empty(1, 1, *hw, device=device) for hw in cells])


def make_gt(objects: int, image_size: tuple[int, int], classes: int, seed: int = 0) -> Instances:
    """Objects of 10 to 300 px (log-uniform), of varied shape, anywhere inside the image."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 * 30 ** torch.rand(objects, 1, generator=generator)
    stretch = torch.exp(0.4 * torch.randn(objects, 1, generator=generator))
    height, width = image_size
    room = torch.tensor([[width, height]])
    sides = torch.cat([scale * stretch, scale / stretch], dim=1).minimum(room)
    corners = torch.rand(objects, 2, generator=generator) * (room - sides)
    gt = Instances(image_size)
    gt.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
    gt.gt_classes = torch.randint(80, (objects,), generator=generator) % classes
    return gt


def make_batch(size: Size) -> list[dict]:
    """What Detectron2's mapper would make, with 8 objects an image."""
    generator = torch.Generator().manual_seed(0)
    shape = 3, size.height, size.width
    return [
        {
            "image": torch.randint(256, shape, generator=generator, dtype=torch.uint8),
            "instances": make_gt(OBJECTS_PER_IMAGE, shape[1:], size.classes, seed=image),
            "height": size.height,
            "width": size.width,
        }
        for image in range(size.images)
    ]


def write_jpegs(size: Size, folder: Path) -> list[dict]:
    """Write random images with detail at all scales, as photographs have it, and describe them in
    Detectron2's dataset format."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(size.images):
        image = np.full((size.height, size.width, 3), 128, np.float32)
        for cells in (2, 8, 32, 128):
            noise = rng.standard_normal((cells, cells, 3), dtype=np.float32) * 60 / cells**0.4
            image += cv2.resize(noise, (size.width, size.height), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        gt = make_gt(OBJECTS_PER_IMAGE, (size.height, size.width), size.classes, seed=index)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist(), strict=True)
        ]
        records.append(
            {
                "file_name": str(path),
                "height": size.height,
                "width": size.width,
                "annotations": annotations,
            }
        )
    return records
