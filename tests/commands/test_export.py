"""focal-retina export as a user calls it, on a model of toy size."""

import json
import re

import pytest
from helpers import make_run

from focal_retina.deploy import load_predictor
from focal_retina.deploy.meta import ModelMeta


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run", datasets=("tiny",))


@pytest.mark.slow
def test_everything(command, run_dir, register_tiny):
    (run_dir / "threshold.json").write_text('{"threshold": 0.4}')
    arguments = ["--int8", 4, "--images", 3, "--evaluate", "--benchmark"]
    status, out, err = command("export", "--model", run_dir, *arguments, *register_tiny)
    assert status == 0, err
    folder = run_dir / "export"
    meta = ModelMeta.load(folder)
    assert (meta.classes, meta.category_ids) == (["cat", "dog"], [3, 8])
    assert meta.threshold == 0.4 and "score threshold of the best F1, 0.400" in out
    files = {"meta.json", "model.pt2", "model.onnx", "model_int8.onnx"}
    assert {x.name for x in folder.iterdir()} == files
    names = ["eager", "eager-folded", "torch.export", "onnx", "onnx-int8"]
    for name in names[1:4]:
        assert f"{name}: 3 images, 300 detections, 0 in one alone" in out
    rows = {x[0]: x[1:] for x in re.findall(r"\| tiny \| (.+) \| (.+) \| (.+) \|", out)}
    assert list(rows) == names == re.findall(r"\| (\S+) \| \d+ ms \|", out)
    assert rows["eager"] == rows["torch.export"] == rows["onnx"]
    difference = float(rows["onnx-int8"][0]) - float(rows["eager"][0])
    assert float(rows["onnx-int8"][1]) == pytest.approx(difference, abs=0.011)


@pytest.mark.slow
def test_without_nms(command, run_dir, register_tiny, tmp_path):
    earlier = tmp_path / "model_int8.onnx"
    earlier.touch()
    arguments = ["--config-file", run_dir / "config.yaml", "--no-nms", "--output", tmp_path]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    status, out, err = command("export", *arguments, *register_tiny, *weights)
    assert status == 0, err
    assert "onnx: 6 images, 600 detections, 0 in one alone" in out
    assert not ModelMeta.load(tmp_path).with_nms and not earlier.exists()


def test_a_file_that_differs(command, run_dir, register_tiny, monkeypatch):
    """Exit status 1 where a file finds less than the model in PyTorch."""

    predictors = {name: load_predictor(run_dir) for name in ("eager", "onnx")}
    predictors["onnx"].model.postprocessor.max_detections = 99
    monkeypatch.setattr("focal_retina.deploy.comparison.load_all", lambda *args: predictors)
    monkeypatch.setattr("focal_retina.deploy.write_targets", lambda *args: {})
    status, out, _ = command("export", "--model", run_dir, "--images", 2, *register_tiny)
    assert status == 1
    assert "onnx: 2 images, 200 detections, 2 in one alone" in out


def test_user_errors(assert_user_error, run_dir, register_tiny, tiny_coco, tmp_path):
    config = ["--config-file", run_dir / "config.yaml", *register_tiny]
    coco = json.loads(tiny_coco[0].read_text())
    (tmp_path / "empty.jpg").touch()
    cut = {**coco, "images": [{**coco["images"][0], "file_name": str(tmp_path / "empty.jpg")}]}
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    unreadable = ["--register", f"cut={tmp_path / 'cut.json'}:{tiny_coco[1]}"]
    coco["categories"].append({"id": 9, "name": "cow"})
    (tmp_path / "cows.json").write_text(json.dumps(coco))
    others = ["--register", f"cows={tmp_path / 'cows.json'}:{tiny_coco[1]}"]
    others += ["DATASETS.TEST", "('cows',)"]
    for arguments, message in [
        (["--model", tmp_path], "there is no file"),
        (["--model", run_dir], "'tiny'"),
        ([*config, "--int8", 0], "--int8: at least 1"),
        ([*config, "--int8", 1, "DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        ([*config, "--images", 0, "--benchmark"], "with --benchmark at least 1"),
        (["--model", run_dir, *unreadable, "DATASETS.TEST", "('cut',)"], "empty.jpg: "),
        (["--model", run_dir, "--evaluate", *others], "3 classes (cat, dog, cow), but the model"),
    ]:
        assert_user_error(message, "export", *arguments)
