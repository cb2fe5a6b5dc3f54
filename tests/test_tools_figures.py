"""The figure tools as a user calls them, in this process and on a model of toy size."""

import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from focal_retina import add_focal_retina_config, merge_config_file
from focal_retina.analysis.labeled_predictions import build_labeled_loader, labeled_predictions
from focal_retina.analysis.loss_report import read_loss_cdfs
from focal_retina.engine import UserError, exit_status, prepare_process

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    DatasetCatalog.pop("tiny", None)
    MetadataCatalog.pop("tiny", None)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call a tool with arguments; returns (exit status, stdout, stderr)."""

    def call(name, *arguments):
        monkeypatch.syspath_prepend(str(TOOLS))
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py"])
        module = __import__(name)
        status = exit_status(lambda: module.main([str(x) for x in arguments]))
        return status, *capsys.readouterr()

    yield call
    for name in ("plot_losses", "analyze_loss", "speed_accuracy"):
        sys.modules.pop(name, None)


@pytest.fixture
def run_dir(tmp_path):
    """What a training leaves: config.yaml and model_final.pth, of a small model of two classes."""
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(ROOT / "configs" / "quickstart" / "shapes_R18.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 80
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny",)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    torch.manual_seed(0)
    path = tmp_path / "run"
    path.mkdir()
    torch.save({"model": build_model(cfg).state_dict()}, path / "model_final.pth")
    (path / "config.yaml").write_text(cfg.dump())
    return path


@pytest.fixture
def register(tiny_coco):
    return ["--register", "tiny={}:{}".format(*tiny_coco)]


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_plot_losses(tool, tmp_path):
    status, out, _ = tool("plot_losses", "--output", tmp_path / "figures")
    assert status == 0
    for name in ("fig1", "fig5", "fig6", "fig7"):
        assert is_png(tmp_path / "figures" / f"{name}.png") and f"{name}.png" in out
        numbers = json.loads((tmp_path / "figures" / f"{name}.json").read_text())
        assert {len(curve["loss"]) for curve in numbers["curves"]} == {len(numbers["x"])}


def test_analyze_loss(tool, run_dir, register, tmp_path):
    arguments = ["--config-file", run_dir / "config.yaml", *register]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    status, out, _ = tool("analyze_loss", *arguments, *weights)
    assert status == 0
    output = run_dir / "loss_distribution"
    assert is_png(output / "fig4.png") and is_png(output / "loss_shares.png")
    numbers = json.loads((output / "loss_distribution.json").read_text())
    assert numbers["images"] == 6
    # 64 × 64 pixels, two levels of strides 8 and 16, 9 anchors, two classes
    samples = numbers["samples"]
    assert samples["negatives"] + samples["positives"] <= 6 * (64 + 16) * 9 * 2
    assert samples["positives"] >= 6
    assert numbers["shares"]["level"]["names"] == ["p3", "p4"]
    assert numbers["shares"]["class"]["names"] == ["cat", "dog"]
    measured = read_loss_cdfs(output / "loss_distribution.json")
    assert (measured.images, measured.samples) == (6, samples)
    assert list(measured.cdfs["negatives"]) == [0, 0.5, 1, 2]
    assert measured.cdfs["positives"][2].loss == numbers["cdf"]["positives"]["2"]["loss"]
    assert f"6 images, {samples['negatives']:,} negatives" in out
    assert "hardest 20% of positives hold" in out

    # As many images as it takes for the negatives; other losses; another place.
    flags = ["--negatives", 1000, "--gamma", 3, "--alpha", -1, "--output", tmp_path / "other"]
    status, out, _ = tool("analyze_loss", *arguments, *flags, *weights)
    assert status == 0
    numbers = json.loads((tmp_path / "other" / "loss_distribution.json").read_text())
    assert (numbers["images"], numbers["gammas"], numbers["alpha"]) == (1, [3.0], -1.0)


@pytest.mark.parametrize("text", ["", "[]", '{"images": 3, "cdf": {"positives": {"0": {}}}}'])
def test_what_is_no_loss_distribution_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is no loss distribution"):
        read_loss_cdfs(tmp_path / "a.json")


def test_labels_are_those_of_training(run_dir, register):
    """Detectron2's own model labels the same anchors the same way."""
    prepare_process([], register[1:])
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(run_dir / "config.yaml"))
    model = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    peer = build_model(cfg).eval()
    batches = list(build_labeled_loader(cfg, 4))
    predictions = list(labeled_predictions(model, batches))
    assert len(batches) == len(predictions) == 4
    for (record,), (name, logits, labels) in zip(batches, predictions, strict=True):
        assert name == record["file_name"]
        with torch.no_grad():
            features = peer.backbone(peer.preprocess_image([record]).tensor)
        anchors = peer.anchor_generator([features[f] for f in peer.head_in_features])
        (expected,), _ = peer.label_anchors(anchors, [record["instances"]])
        assert torch.equal(torch.cat(labels, dim=1)[0], expected)
        assert [x.shape for x in logits] == [(1, len(x), 2) for x in anchors]
    assert not model.training and not logits[0].requires_grad


def test_speed_accuracy(tool, run_dir, register, tmp_path):
    output = tmp_path / "fig"
    arguments = ["--run", f"toy={run_dir}", "--sizes", 48, 64, "--images", 2, "--output", output]
    status, _, err = tool("speed_accuracy", *arguments, *register)
    assert status == 0, err
    assert is_png(output / "fig2.png")
    numbers = json.loads((output / "speed_accuracy.json").read_text())
    assert [(m["run"], m["size"]) for m in numbers["measurements"]] == [("toy", 48), ("toy", 64)]
    for measurement in numbers["measurements"]:
        assert measurement["milliseconds"] > 0 and measurement["timed_images"] == 2
        assert 0 <= measurement["metrics"]["AP"] <= 100
        assert "CPU" in measurement["device"]
    assert numbers["paper"]["others"]["YOLOv2"] == [25, 21.6]

    before = (output / "speed_accuracy.json").read_text()
    status, out, _ = tool("speed_accuracy", *arguments, *register)
    assert status == 0
    assert out.count("measured before") == 2
    assert (output / "speed_accuracy.json").read_text() == before


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("analyze_loss", [], "--config-file"),
        ("analyze_loss", ["--config-file", "none.yaml"], "none.yaml does not exist"),
        ("analyze_loss", ["CONFIG", "MODEL.WEIGHTS", "none.pth"], "none.pth does not exist"),
        ("analyze_loss", ["--gamma", "-1", "CONFIG"], "gammas are"),
        ("analyze_loss", ["CONFIG", "MODEL.META_ARCHITECTURE", "RetinaNet"], "FocalRetinaNet"),
        ("analyze_loss", ["CONFIG", "MODEL.FPN.OUT_CHANNELS", "16"], "don't belong together"),
        ("speed_accuracy", ["--run", "a"], "NAME=CONFIG:WEIGHTS"),
        ("speed_accuracy", ["--run", "a=none.yaml:none.pth"], "none.yaml does not exist"),
        ("speed_accuracy", ["--run", "a=.", "--output", "out"], "no file"),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    tool, run_dir, register, tmp_path, monkeypatch, name, arguments, message
):
    monkeypatch.chdir(tmp_path)
    weights = ["MODEL.WEIGHTS", str(run_dir / "model_final.pth")]
    config = ["--config-file", str(run_dir / "config.yaml"), *register, *weights]
    arguments = [y for x in arguments for y in (config if x == "CONFIG" else [x])]
    status, _, err = tool(name, *arguments)
    assert status == 2
    (line,) = [x for x in err.splitlines() if x.startswith(f"{name}.py: ")]
    assert message in line


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("analyze_loss", ["--images", "0"]),
        ("analyze_loss", ["--alpha", "1.5"]),
        ("speed_accuracy", []),
        ("speed_accuracy", ["--run", "a=b:c", "--sizes", "0"]),
    ],
)
def test_impossible_arguments(tool, capsys, name, arguments):
    with pytest.raises(SystemExit) as stopped:
        tool(name, *arguments)
    assert stopped.value.code == 2


def test_images_without_annotations_are_refused():
    DatasetCatalog.register("tiny", lambda: [{"file_name": "a.jpg", "height": 1, "width": 1}])
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("tiny",)
    with pytest.raises(UserError, match=r"a\.jpg has no annotations"):
        build_labeled_loader(cfg, 3)


def test_diverged_weights_are_named_with_the_image(tool, run_dir, register):
    path = run_dir / "model_final.pth"
    weights = torch.load(path, weights_only=True)
    weights["model"]["head.cls_score.bias"].fill_(float("nan"))
    torch.save(weights, path)
    status, _, err = tool(
        "analyze_loss", "--config-file", run_dir / "config.yaml", *register, "MODEL.WEIGHTS", path
    )
    assert status == 2
    assert ".jpg: there are NaN or infinite logits" in err


@pytest.mark.parametrize("name", ["plot_losses", "analyze_loss", "speed_accuracy"])
def test_tools_are_short(name):
    assert len((TOOLS / f"{name}.py").read_text().splitlines()) <= 60
