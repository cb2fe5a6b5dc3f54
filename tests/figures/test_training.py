"""The report at the end of a training: metrics.json as Detectron2 writes it, resumed, cut off; the
picture of it; and files where the log says they are."""

import json
import logging

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage, JSONWriter

from focal_retina.data import register_coco_json
from focal_retina.evaluation.coco_evaluator import PRECISION_CURVES_FILE, PrecisionCurves
from focal_retina.figures.training import Series, read_metrics, write_training_report


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.json"


def write_rows(path, *rows):
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


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
    write_rows(path, *({"iteration": i, "total_loss": 1.0} for i in (10, 20, 30, 40)))
    write_rows(path, *({"iteration": i, "total_loss": 2.0} for i in (25, 35)))
    assert read_metrics(path)["total_loss"] == Series([10, 20, 25, 35], [1.0, 1.0, 2.0, 2.0])


def test_each_scalar_has_its_own_iterations(path):
    """One write of Detectron2 may hold rows of several iterations, in any order."""
    write_rows(path, {"iteration": 20, "lr": 0.1}, {"iteration": 19, "bbox/AP": 5})
    write_rows(path, {"iteration": 40, "lr": 0.2})
    metrics = read_metrics(path)
    assert metrics == {"lr": Series([20, 40], [0.1, 0.2]), "bbox/AP": Series([19], [5.0])}


@pytest.mark.parametrize(
    "rest", ["", '{"iteration": 30, "lr": 0.1}\n{"iteration": 40, "lr": 0.1}\n']
)
def test_a_cut_off_line_is_left_out_with_a_warning(path, rest, caplog):
    write_rows(path, {"iteration": 10, "lr": 0.1})
    with path.open("a") as file:
        file.write('{"iteration": 20, "l' + rest)
    with caplog.at_level(logging.WARNING):
        metrics = read_metrics(path)
    assert metrics["lr"].iterations == ([10, 40] if rest else [10])
    assert f"{path}, line 2" in caplog.text


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
        if name == "tiny_a":  # as if another evaluator served tiny_b
            perfect.save(results.parent / PRECISION_CURVES_FILE)
    (tmp_path / "out" / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.5}\n')
    return cfg


OF_TWO = {"detections_tiny_a.png", "pr_curves_tiny_a.png", "detections_tiny_b.png"}


@pytest.mark.parametrize(
    "datasets, expected",
    [
        ((), set()),
        (["tiny_a"], {"detections.png", "pr_curves.png"}),
        (["tiny_a", "tiny_b"], OF_TWO),
    ],
)
def test_pictures_are_where_the_log_says(cfg, tmp_path, caplog, datasets, expected):
    cfg.DATASETS.TEST = datasets
    with caplog.at_level(logging.INFO, logger="focal_retina"):
        write_training_report(cfg)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"training.png", *expected}
    for name in ("training.png", *expected, "metrics.json"):
        assert str(tmp_path / "out" / name) in caplog.text
    assert "tensorboard --logdir" in caplog.text
