"""The generated data set on disk: COCO's format, complete or absent, whoever asks for it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from focal_retina.data import shapes
from focal_retina.data.coco_json import read_coco_json
from focal_retina.data.shapes import generate_split, register_shapes, split_directory
from focal_retina.data.shapes_scene import SPLITS, ShapesConfig, render_scene

CONFIG = ShapesConfig(num_train=6, num_val=4, num_test=2)
NAMES = [f"focal_shapes_{split}" for split in SPLITS]


@pytest.fixture
def registered(tmp_path):
    """The data set registered anew, small and below tmp_path."""
    before = {n: (DatasetCatalog.pop(n), MetadataCatalog.pop(n)) for n in NAMES}
    register_shapes(CONFIG, tmp_path)
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
    assert [p.name for p in directory.parent.iterdir() if p.is_dir()] == ["val"]
    check_contents(directory, "val")


def test_perfect_detections_have_ap_100(registered, tmp_path):
    """COCOEvaluator reads the metadata and the file as for any COCO set."""
    records = DatasetCatalog.get("focal_shapes_val")
    evaluator = COCOEvaluator("focal_shapes_val", output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in records:
        instances = Instances((record["height"], record["width"]))
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_other_parameters_or_generator_never_use_old_data(tmp_path, monkeypatch):
    directory = generate_split(CONFIG, "test", tmp_path)
    other = generate_split(replace(CONFIG, seed=1), "test", tmp_path)
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", shapes.GENERATOR_VERSION + 1)
    newer = generate_split(CONFIG, "test", tmp_path)
    assert len({directory, other, newer}) == 3
    assert json.loads((newer / "annotations.json").read_text())["info"]["version"] == str(
        shapes.GENERATOR_VERSION
    )


LONG = replace(CONFIG, num_train=300)


def _start(root):
    process = multiprocessing.get_context("spawn").Process(
        target=generate_split, args=(LONG, "train", root)
    )
    process.start()
    return process


def test_killed_generation_is_done_again(tmp_path):
    target = split_directory(LONG, "train", tmp_path)
    process = _start(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.rglob("*.jpg")) and not target.exists()

    check_contents(generate_split(LONG, "train", tmp_path), "train", LONG)
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["train"]


def test_two_processes_at_once_write_one_data_set(tmp_path):
    processes = [_start(tmp_path) for _ in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    target = split_directory(LONG, "train", tmp_path)
    check_contents(target, "train", LONG)
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["train"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.*DETECTRON2_DATASETS"):
        generate_split(CONFIG, "val", tmp_path / "file")


def test_import_registers_under_detectron2_datasets_and_writes_nothing(tmp_path):
    program = (
        "import focal_retina\n"
        "from detectron2.data import MetadataCatalog\n"
        "print(MetadataCatalog.get('focal_shapes_train').json_file)"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "sets")}
    command = [sys.executable, "-c", program]
    printed = subprocess.check_output(
        command, env=environment, text=True, cwd=Path(__file__).parents[2]
    )
    expected = split_directory(ShapesConfig(), "train", tmp_path / "sets") / "annotations.json"
    assert printed.strip() == str(expected)
    assert not (tmp_path / "sets").exists()
