"""The generated data set on disk: COCO's format, complete or absent, whoever asks for it."""

import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from focal_retina.data import shapes
from focal_retina.data.coco import read_coco_json
from focal_retina.data.shapes import generate_split, register_shapes, split_directory
from focal_retina.data.shapes_scene import SPLITS, ShapesConfig, render_scene

CONFIG = ShapesConfig(num_train=6, num_val=4, num_test=2)
NAMES = [f"focal_shapes_{split}" for split in SPLITS]


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The data set registered anew, small and below tmp_path."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = {n: (DatasetCatalog.pop(n), MetadataCatalog.pop(n)) for n in NAMES}
    register_shapes(CONFIG)
    yield tmp_path
    for name, (loader, metadata) in before.items():
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


def check_contents(directory, split, config=CONFIG):
    """What stands on disk is what render_scene makes in this process."""
    content = read_coco_json(str(directory / "annotations.json"))
    number = getattr(config, f"num_{split}")
    assert len(content["images"]) == len(list((directory / "images").iterdir())) == number
    for entry in content["images"][:6]:
        pixels, objects = render_scene(config, split, entry["id"])
        stored = np.asarray(Image.open(directory / "images" / entry["file_name"]))
        assert stored.shape == (entry["height"], entry["width"], 3) == pixels.shape
        assert np.abs(stored.astype(int) - pixels).mean() < 6  # JPEG's loss
        annotations = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        assert [
            (tuple(a["bbox"]), a["area"], a["category_id"] - 1, a["iscrowd"]) for a in annotations
        ] == [(o.box, o.area, o.label, 0) for o in objects]


def test_registration_writes_nothing_and_first_use_writes_one_split(registered):
    assert list(registered.iterdir()) == []
    records = DatasetCatalog.get("focal_shapes_val")
    assert len(records) == 4
    assert all(os.path.isfile(record["file_name"]) for record in records)
    directory = split_directory(CONFIG, "val", registered)
    metadata = MetadataCatalog.get("focal_shapes_val")
    assert metadata.generated and metadata.json_file == str(directory / "annotations.json")
    assert [p.name for p in directory.parent.iterdir() if p.is_dir()] == ["val"]
    check_contents(directory, "val")


def test_other_parameters_or_generator_never_use_old_data(tmp_path, monkeypatch):
    directory = generate_split(CONFIG, "test", tmp_path)
    other = generate_split(replace(CONFIG, seed=1), "test", tmp_path)
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", shapes.GENERATOR_VERSION + 1)
    newer = generate_split(CONFIG, "test", tmp_path)
    assert len({directory, other, newer}) == 3


def test_killed_and_concurrent_generation(tmp_path):
    """One process is killed amid its images; then two at once write one data set."""
    config = replace(CONFIG, num_train=300)
    target = split_directory(config, "train", tmp_path)
    context = multiprocessing.get_context("spawn")
    arguments = {"target": generate_split, "args": (config, "train", tmp_path)}
    killed, *others = (context.Process(**arguments) for _ in range(3))
    killed.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert list(tmp_path.rglob("*.jpg")) and not target.exists()

    for process in others:
        process.start()
    for process in others:
        process.join(120)
    assert [process.exitcode for process in others] == [0, 0]
    check_contents(target, "train", config)
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["train"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.*DETECTRON2_DATASETS"):
        generate_split(CONFIG, "val", tmp_path / "file")
