"""Small data that several tests share."""

import json
import os

# Processes that share the cores stall each other if each brings a thread for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import focal_retina  # noqa: F401 - before a test imports Detectron2: that is quiet then


@pytest.fixture
def catalogs():
    """Forget the data sets that a test registers."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def tiny_coco(tmp_path):
    """(annotations json, image folder): 6 images with a bright square each; categories 3 and 8."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        pixels = generator.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in generator.integers(2, 34, 2))
        pixels[y : y + 28, x : x + 28] = 255
        cv2.imwrite(str(folder / f"{i}.jpg"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "width": 64, "height": 64})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": (3, 8)[i % 2],
                "bbox": [x, y, 28, 28],
                "area": 28 * 28,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path, folder
