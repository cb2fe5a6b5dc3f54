"""The report at the end of a training: metrics.json as Detectron2 writes it, resumed, cut off; the
picture of it; and files where the log says they are."""

import json
import logging

import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage, JSONWriter
from pycocotools.coco import COCO

from focal_retina.data import register_coco_json
from focal_retina.data.classes import model_threshold, save_classes
from focal_retina.evaluation.box_metrics import evaluate_boxes
from focal_retina.evaluation.explanation import write_explanation
from focal_retina.figures.training import Series, read_metrics, write_training_report


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.json"


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_reads_what_detectron2_writes(path):
    writer = JSONWriter(str(path))
    with EventStorage() as storage:
        for iteration in range(4):
            storage.put_scalars(total_loss=4.0 - iteration, lr=0.1, smoothing_hint=False)
            if iteration == 3:
                storage.put_scalar("bbox/AP", 12.5, smoothing_hint=False)
            writer.write()
            storage.step()
    writer.close()
    metrics = read_metrics(path)
    assert metrics["total_loss"] == Series([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0])
    assert metrics["bbox/AP"] == Series([3], [12.5])


def test_a_resumed_run_replaces_what_it_repeats(path):
    rows = (10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0), (25, 2.0), (35, 2.0)
    write_rows(path, *({"iteration": i, "total_loss": x} for i, x in rows))
    assert read_metrics(path)["total_loss"] == Series([10, 20, 25, 35], [1.0, 1.0, 2.0, 2.0])


def test_each_scalar_has_its_own_iterations(path):
    """One write of Detectron2 may hold rows of several iterations, in any order."""
    rows = {"iteration": 20, "lr": 0.1}, {"iteration": 19, "bbox/AP": 5}
    write_rows(path, *rows, {"iteration": 40, "lr": 0.2})
    metrics = read_metrics(path)
    assert metrics == {"lr": Series([20, 40], [0.1, 0.2]), "bbox/AP": Series([19], [5.0])}


@pytest.mark.parametrize("rest", ["", '{"iteration": 40, "lr": 0.1}\n'])
def test_a_cut_off_line_is_left_out_with_a_warning(path, rest, caplog):
    path.write_text('{"iteration": 10, "lr": 0.1}\n{"iteration": 20, "l\n' + rest)
    with caplog.at_level(logging.WARNING):
        metrics = read_metrics(path)
    assert metrics["lr"].iterations == ([10, 40] if rest else [10])
    assert f"{path}, line 2" in caplog.text


@pytest.mark.parametrize(
    "datasets, expected",
    [
        ([], set()),
        (["tiny_a"], {"detections.png"}),
        (["tiny_a", "tiny_b"], {"detections_tiny_a.png", "detections_tiny_b.png"}),
    ],
)
def test_pictures_and_threshold_are_where_the_log_says(tiny_coco, path, caplog, datasets, expected):
    json_file, folder = tiny_coco
    for name in datasets:
        register_coco_json(name, str(json_file), str(folder))
        results = path.parent / "inference" / name / "coco_instances_results.json"
        results.parent.mkdir(parents=True)
        annotations = json.loads(json_file.read_text())["annotations"]
        found = [{**a, "score": 0.5} for a in annotations]
        results.write_text(json.dumps(found))
        if name == "tiny_a":  # as if another evaluator served tiny_b
            coco_eval = evaluate_boxes(COCO(str(json_file)), found)
            write_explanation(coco_eval, ["cat", "dog"], name, results.parent)
    write_rows(path, {"iteration": 19, "total_loss": 1.5})
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(path.parent), datasets
    with caplog.at_level(logging.INFO, logger="focal_retina"):
        write_training_report(cfg)
    assert {x.name for x in path.parent.glob("*.png")} == {"training.png", *expected}
    for name in ("training.png", *expected, "metrics.json"):
        assert str(path.with_name(name)) in caplog.text
    assert "tensorboard --logdir" in caplog.text
    if datasets:
        explained = path.parent / "inference" / "tiny_a"
        names = {"pr_curves.png", "confusion_matrix.png", "evaluation.png"}
        assert {x.name for x in explained.glob("*.png")} == names
        assert str(explained) in caplog.text
        cfg.MODEL.WEIGHTS = str(path.with_name("model_final.pth"))
        assert model_threshold(cfg) == 0.5
        assert json.loads(path.with_name("threshold.json").read_text())["dataset"] == "tiny_a"
        save_classes(cfg, path.parent)  # as a new training does
        assert model_threshold(cfg) is None
