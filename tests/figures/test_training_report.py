"""The report at the end of a training: files where the log says they are."""

import json
import logging

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_retina.data import register_coco_json
from focal_retina.evaluation.coco_evaluator import PRECISION_CURVES_FILE, PrecisionCurves
from focal_retina.figures.training import write_training_report


@pytest.fixture
def cfg(tiny_coco, tmp_path):
    """A finished training's folder: two evaluated sets, with detections in COCO's ids."""
    json_file, folder = tiny_coco
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    for name in ("tiny_a", "tiny_b"):
        register_coco_json(name, str(json_file), str(folder))
        results = tmp_path / "out" / "inference" / name / "coco_instances_results.json"
        results.parent.mkdir(parents=True)
        annotations = json.loads(json_file.read_text())["annotations"]
        results.write_text(json.dumps([{**a, "score": 0.5} for a in annotations]))
        recalls = np.linspace(0, 1, 101)
        perfect = PrecisionCurves(np.ones((1, 101, 2)), np.array([0.5]), recalls, ["cat", "dog"])
        perfect.save(results.parent / PRECISION_CURVES_FILE)
    (tmp_path / "out" / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.5}\n')
    yield cfg
    for name in ("tiny_a", "tiny_b"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "datasets, expected",
    [
        ((), {"training.png"}),
        (("tiny_a",), {"training.png", "detections.png", "pr_curves.png"}),
        (
            ("tiny_a", "tiny_b"),
            {"training.png"}
            | {f"{kind}_tiny_{x}.png" for kind in ("detections", "pr_curves") for x in "ab"},
        ),
    ],
)
def test_pictures_are_where_the_log_says(cfg, tmp_path, caplog, datasets, expected):
    cfg.DATASETS.TEST = datasets
    with caplog.at_level(logging.INFO, logger="focal_retina"):
        write_training_report(cfg)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == expected
    for name in (*expected, "metrics.json"):
        assert str(tmp_path / "out" / name) in caplog.text
    assert "tensorboard --logdir" in caplog.text


def test_another_evaluator_leaves_no_precision_curves(cfg, tmp_path):
    cfg.DATASETS.TEST = ("tiny_a",)
    (tmp_path / "out" / "inference" / "tiny_a" / PRECISION_CURVES_FILE).unlink()
    write_training_report(cfg)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"detections.png", "training.png"}
