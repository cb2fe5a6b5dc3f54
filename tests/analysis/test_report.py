"""The report at the end of a training: files where the log says they are."""

import json
import logging

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_retina.analysis import plots, report
from focal_retina.analysis.report import write_training_report
from focal_retina.data import register_coco_json
from focal_retina.evaluation.coco_evaluator import PRECISION_CURVES_FILE
from focal_retina.evaluation.precision_curves import PrecisionCurves


@pytest.fixture
def cfg(tiny_coco, tmp_path):
    """A finished training's folder: two evaluated sets, tiny_a with detections in COCO's ids."""
    json_file, folder = tiny_coco
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.DATASETS.TEST = ("tiny_a",)
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


def test_files_are_where_the_log_says(cfg, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="focal_retina"):
        write_training_report(cfg)
    for name in ("detections.png", "pr_curves.png", "training.png"):
        assert cv2.imread(str(tmp_path / "out" / name)) is not None
        assert str(tmp_path / "out" / name) in caplog.text
    assert "metrics.json" in caplog.text and "tensorboard --logdir" in caplog.text


def test_perfect_detections_are_drawn_as_the_ground_truth_is(cfg, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw_detection_sheet", lambda *arguments: drawn.append(arguments))
    write_training_report(cfg)
    ((comparisons, class_names, title, _),) = drawn
    assert list(class_names) == ["cat", "dog"]
    assert "tiny_a" in title and "0.50" in title
    assert len(comparisons) == 6
    for comparison in comparisons:
        assert [
            box._replace(score=None) for box in comparison.detections
        ] == comparison.ground_truth


def test_several_test_sets_have_a_sheet_each(cfg, tmp_path):
    cfg.DATASETS.TEST = ("tiny_a", "tiny_b")
    write_training_report(cfg)
    sheets = {path.name for path in (tmp_path / "out").glob("*.png")}
    pictures = {f"{kind}_tiny_{x}.png" for kind in ("detections", "pr_curves") for x in "ab"}
    assert sheets == {*pictures, "training.png"}


def test_without_evaluation_there_are_the_curves(cfg, tmp_path):
    cfg.DATASETS.TEST = ()
    write_training_report(cfg)
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["training.png"]


def test_another_evaluator_leaves_no_precision_curves(cfg, tmp_path):
    (tmp_path / "out" / "inference" / "tiny_a" / PRECISION_CURVES_FILE).unlink()
    write_training_report(cfg)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"detections.png", "training.png"}


def test_sheet_holds_at_most_twelve_images(cfg, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(report, "_MAX_IMAGES", 2)
    draw = plots.draw_detection_sheet
    monkeypatch.setattr(
        report, "draw_detection_sheet", lambda c, *rest: (seen.append(len(c)), draw(c, *rest))
    )
    write_training_report(cfg)
    assert seen == [2]
