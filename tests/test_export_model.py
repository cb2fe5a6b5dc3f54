"""tools/export_model.py as a user calls it, on a model of toy size."""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_run import make_run

from focal_retina.engine import exit_status
from focal_retina.export import ModelMeta, deployment, load_predictor

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    DatasetCatalog.pop("tiny", None)
    MetadataCatalog.pop("tiny", None)


@pytest.fixture
def export_model(monkeypatch, capsys):
    """Call the tool; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.syspath_prepend(str(TOOLS))
        monkeypatch.setattr(sys, "argv", ["tools/export_model.py"])
        import export_model as tool

        status = exit_status(lambda: tool.main([str(x) for x in arguments]))
        return status, *capsys.readouterr()

    yield call
    sys.modules.pop("export_model", None)


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run", datasets=("tiny",))


@pytest.fixture
def register(tiny_coco):
    return ["--register", "tiny={}:{}".format(*tiny_coco)]


def test_everything(export_model, run_dir, register):
    """Files, agreement, AP and speed of each; classes are those of the data set."""
    flags = ["--int8", 4, "--images", 3, "--evaluate", "--benchmark"]
    status, out, err = export_model("--model", run_dir, *flags, *register)
    assert status == 0, err
    folder = run_dir / "export"
    meta = ModelMeta.load(folder)
    assert (meta.classes, meta.category_ids) == (["cat", "dog"], [3, 8])
    assert {x.name for x in folder.iterdir()} == {
        "meta.json",
        "model.pt2",
        "model.onnx",
        "model_int8.onnx",
    }
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
def test_without_nms(export_model, run_dir, register, tmp_path):
    arguments = ["--config-file", run_dir / "config.yaml", "--no-nms", "--output", tmp_path / "x"]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model_int8.onnx").touch()
    status, out, err = export_model(*arguments, *register, *weights)
    assert status == 0, err
    assert "onnx: 6 images, 600 detections, 0 in one alone" in out
    assert not ModelMeta.load(tmp_path / "x").with_nms
    assert not (tmp_path / "x" / "model_int8.onnx").exists()
    assert len(load_predictor(tmp_path / "x" / "model.onnx").meta.levels) == 2


def test_a_file_that_differs(export_model, run_dir, register, monkeypatch):
    """Exit status 1 where a file finds less than the model in PyTorch."""

    def export(cfg, folder, with_nms, num_calibration):
        predictors = {"eager": load_predictor(run_dir), "onnx": load_predictor(run_dir)}
        predictors["onnx"].model.postprocessor.max_detections = 99
        return predictors

    monkeypatch.setattr(deployment, "export", export)
    status, out, _ = export_model("--model", run_dir, "--images", 2, *register)
    assert status == 1
    assert "onnx: 2 images, 200 detections, 2 in one alone" in out


def test_user_errors(export_model, run_dir, register, tmp_path):
    status, _, err = export_model("--model", tmp_path)
    assert status == 2 and "there is no file" in err
    status, _, err = export_model("--model", run_dir)
    assert status == 2 and "'tiny'" in err
    config = ["--config-file", run_dir / "config.yaml", *register]
    status, _, err = export_model(*config)
    assert status == 2 and "MODEL.WEIGHTS is empty" in err

    other = {"model": {"backbone.fpn_lateral3.weight": torch.zeros(1)}}
    torch.save(other, tmp_path / "other.pth")
    status, _, err = export_model(*config, "MODEL.WEIGHTS", tmp_path / "other.pth")
    assert status == 2 and "MODEL.WEIGHTS and the config don't belong together" in err
    assert "Traceback" not in err
    with pytest.raises(SystemExit, match="2"):
        export_model("--model", run_dir, "--int8", 0)


def test_commands_of_the_docs(export_model, monkeypatch):
    """They are understood: the next step is to look for the model."""
    text = (TOOLS.parent / "docs" / "deploy.md").read_text()
    commands = [x for x in text.splitlines() if "./run tools/export_model.py" in x]
    assert len(commands) == 3
    monkeypatch.chdir(TOOLS)  # where there is none
    for command in commands:
        arguments = shlex.split(command.partition("export_model.py")[2])
        status, _, err = export_model(*arguments)
        assert status == 2 and "config file output/quickstart" in err
