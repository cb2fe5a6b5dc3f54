"""focal-retina export as a user calls it, on a model of toy size."""

import shlex
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_run import make_run

from focal_retina.commands import main
from focal_retina.deploy import ModelMeta, load_predictor

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    DatasetCatalog.pop("tiny", None)
    MetadataCatalog.pop("tiny", None)


@pytest.fixture
def export(capsys):
    """Call the command; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        return main(["export", *map(str, arguments)]), *capsys.readouterr()

    return call


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run", datasets=("tiny",))


@pytest.fixture
def register(tiny_coco):
    return ["--register", "tiny={}:{}".format(*tiny_coco)]


@pytest.mark.slow
def test_everything(export, run_dir, register):
    arguments = ["--int8", 4, "--images", 3, "--evaluate", "--benchmark"]
    status, out, err = export("--model", run_dir, *arguments, *register)
    assert status == 0, err
    folder = run_dir / "export"
    meta = ModelMeta.load(folder)
    assert (meta.classes, meta.category_ids) == (["cat", "dog"], [3, 8])
    files = {"meta.json", "model.pt2", "model.onnx", "model_int8.onnx"}
    assert {x.name for x in folder.iterdir()} == files
    names = ["eager", "eager-folded", "torch.export", "onnx", "onnx-int8"]
    for name in names[1:4]:
        assert f"{name}: 3 images, 300 detections, 0 in one alone" in out
    precisions = {}
    for name in names:
        (row,) = [x.split("|") for x in out.splitlines() if x.startswith(f"| tiny | {name} |")]
        precisions[name] = float(row[3])
        difference = precisions[name] - precisions["eager"]
        assert float(row[4]) == pytest.approx(difference, abs=0.011)
        assert [x for x in out.splitlines() if x.startswith(f"| {name} |") and " ms" in x]
    assert precisions["eager"] == precisions["torch.export"] == precisions["onnx"]


@pytest.mark.slow
def test_without_nms(export, run_dir, register, tmp_path):
    arguments = ["--config-file", run_dir / "config.yaml", "--no-nms", "--output", tmp_path / "x"]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model_int8.onnx").touch()
    status, out, err = export(*arguments, *register, *weights)
    assert status == 0, err
    assert "onnx: 6 images, 600 detections, 0 in one alone" in out
    assert not ModelMeta.load(tmp_path / "x").with_nms
    assert not (tmp_path / "x" / "model_int8.onnx").exists()
    assert len(load_predictor(tmp_path / "x" / "model.onnx").meta.levels) == 2


def test_a_file_that_differs(export, run_dir, register, monkeypatch):
    """Exit status 1 where a file finds less than the model in PyTorch."""

    def load_all(model, meta, paths):
        predictors = {"eager": load_predictor(run_dir), "onnx": load_predictor(run_dir)}
        predictors["onnx"].model.postprocessor.max_detections = 99
        return predictors

    monkeypatch.setattr("focal_retina.deploy.comparison.load_all", load_all)
    monkeypatch.setattr("focal_retina.deploy.write_targets", lambda *args: {})
    status, out, _ = export("--model", run_dir, "--images", 2, *register)
    assert status == 1
    assert "onnx: 2 images, 200 detections, 2 in one alone" in out


def test_user_errors(export, run_dir, register, tmp_path):
    status, _, err = export("--model", tmp_path)
    assert status == 2 and "there is no file" in err
    status, _, err = export("--model", run_dir)
    assert status == 2 and "'tiny'" in err
    config = ["--config-file", run_dir / "config.yaml", *register]
    status, _, err = export(*config)
    assert status == 2 and "MODEL.WEIGHTS is empty" in err

    other = {"model": {"backbone.fpn_lateral3.weight": torch.zeros(1)}}
    torch.save(other, tmp_path / "other.pth")
    status, _, err = export(*config, "MODEL.WEIGHTS", tmp_path / "other.pth")
    assert status == 2 and "MODEL.WEIGHTS and the config don't belong together" in err
    assert "Traceback" not in err
    status, _, err = export("--model", run_dir, "--int8", 0)
    assert status == 2 and "--int8: at least 1" in err


def test_commands_of_the_docs(export, monkeypatch, tmp_path):
    """They are understood: the next step is to look for the model."""
    text = (DOCS / "deploy.md").read_text().replace("\\\n", " ")
    commands = [x for x in text.splitlines() if "focal_retina export" in x]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)  # where there is none
    for command in commands:
        status, _, err = export(*shlex.split(command.partition("focal_retina export")[2]))
        assert status == 2 and "config file output/quickstart" in err
