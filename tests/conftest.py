"""Small data that several tests share."""

import json
import logging
import os
import signal

# Processes that share the cores stall each other if each brings a thread for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from hypothesis import settings

from focal_retina.commands import main
from focal_retina.data import register_coco_json

# Examples of a property where it does not say how many
settings.register_profile("tests", deadline=None, max_examples=60)
settings.load_profile("tests")
# What is started in the background ignores Ctrl-C, and so would the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def catalogs():
    """Forget the data sets that a test registers."""
    before = [set(x) for x in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)


@pytest.fixture
def quiet_setup(monkeypatch):
    """What Detectron2's default_setup costs and leaves: it asks compilers for their versions, and
    its loggers keep their level, and handlers hold on to the stream that the test captured."""
    monkeypatch.setattr("detectron2.utils.collect_env.collect_env_info", lambda: "")
    yield
    for name in ("detectron2", "fvcore", "focal_retina"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.NOTSET)
    setup_logger.cache_clear()


@pytest.fixture
def command(capsys):
    """Call a command; returns (exit status, stdout, stderr)."""

    def call(*words):
        return main([*map(str, words)]), *capsys.readouterr()

    return call


@pytest.fixture
def assert_user_error(command):
    """Call a command that ends with one line and status 2."""

    def call(message, name, *words):
        status, _, err = command(name, *words)
        lines = [x for x in err.splitlines() if x.startswith(f"focal-retina {name}: ")]
        assert (status, len(lines)) == (2, 1) and message in lines[0], err
        assert "Traceback" not in err

    return call


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
        annotation = {"id": i + 1, "image_id": i + 1, "category_id": (3, 8)[i % 2]}
        annotations.append({**annotation, "bbox": [x, y, 28, 28], "area": 784, "iscrowd": 0})
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path, folder


@pytest.fixture
def tiny(tiny_coco):
    """tiny_coco, registered: its name."""
    register_coco_json("tiny", *map(str, tiny_coco))
    return "tiny"


@pytest.fixture
def register_tiny(tiny_coco):
    """The arguments of a command that register tiny_coco as "tiny"."""
    return ["--register", "tiny={}:{}".format(*tiny_coco)]
