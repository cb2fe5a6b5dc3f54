"""focal-retina figure, as a user calls it, on a model of toy size."""

import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_run import make_run

from focal_retina.commands import main
from focal_retina.figures.loss_cdf import read_loss_cdf


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    DatasetCatalog.pop("tiny", None)
    MetadataCatalog.pop("tiny", None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("toy") / "run", ("tiny",), SCORE_THRESH_TEST=0.0)


@pytest.fixture
def run_dir(toy, tmp_path):
    """A training's folder whose config writes into tmp_path."""
    folder = shutil.copytree(toy, tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(toy), str(folder)))
    return folder


@pytest.fixture
def figure(tiny_coco, capsys):
    """Call the command; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        register = ["--register", "tiny={}:{}".format(*tiny_coco)]
        status = main(["figure", *(str(x) for x in arguments), *register])
        return status, *capsys.readouterr()

    return call


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_losses(figure, tmp_path):
    status, out, _ = figure("losses", "--output", tmp_path / "figures")
    assert status == 0
    for name in ("fig1", "fig5", "fig6", "fig7"):
        assert is_png(tmp_path / "figures" / f"{name}.png") and f"{name}.png" in out


def test_loss_cdf(figure, run_dir, tmp_path):
    status, out, _ = figure("loss-cdf", "--config-file", run_dir)
    assert status == 0
    output = run_dir / "loss_distribution"
    assert is_png(output / "fig4.png") and is_png(output / "loss_shares.png")
    numbers = json.loads((output / "loss_distribution.json").read_text())
    # 64 × 64 pixels, two levels of strides 8 and 16, 9 anchors, two classes
    samples = numbers["samples"]
    assert 0 < samples["negatives"] + samples["positives"] <= 6 * (64 + 16) * 9 * 2
    assert samples["positives"] >= 6 and numbers["drawn"] == samples
    assert numbers["shares"]["level"]["names"] == ["p3", "p4"]
    assert numbers["shares"]["class"]["names"] == ["cat", "dog"]
    measured = read_loss_cdf(output)
    assert (measured.images, measured.samples) == (6, samples)
    assert list(measured.cdfs["negatives"]) == [0, 0.5, 1, 2]
    assert measured.cdfs["positives"][2].loss == numbers["cdf"]["positives"]["2"]["loss"]
    assert f"6 images, {samples['negatives']:,} negatives" in out
    assert "hardest 20% of positives hold" in out

    # Weights beside a config file, fewer images, other losses, another place.
    flags = ["--images", 2, "--gamma", 3, "--alpha", -1, "--output", tmp_path / "other"]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    status, out, _ = figure("loss-cdf", *flags, "--config-file", run_dir / "config.yaml", *weights)
    assert status == 0
    numbers = json.loads((tmp_path / "other" / "loss_distribution.json").read_text())
    assert (numbers["images"], numbers["gammas"], numbers["alpha"]) == (2, [3.0], -1.0)


def test_speed_accuracy(figure, run_dir, tmp_path):
    output = tmp_path / "fig"
    flags = ["--run", f"toy={run_dir}", "--sizes", 48, 64, "--images", 2, "--output", output]
    status, _, err = figure("speed-accuracy", *flags)
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
    status, out, _ = figure("speed-accuracy", *flags)
    assert status == 0
    assert out.count("measured before") == 2
    assert (output / "speed_accuracy.json").read_text() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["loss-cdf"], "--config-file"),
        (["loss-cdf", "--config-file", "none.yaml"], "none.yaml does not exist"),
        (["loss-cdf", "--config-file", "."], "no finished training"),
        (["loss-cdf", "RUN", "MODEL.WEIGHTS", "none.pth"], "none.pth does not exist"),
        (["loss-cdf", "RUN", "--gamma", "-1"], "gammas are"),
        (["loss-cdf", "RUN", "MODEL.META_ARCHITECTURE", "RetinaNet"], "FocalRetinaNet"),
        (["loss-cdf", "RUN", "MODEL.FPN.OUT_CHANNELS", "16"], "don't belong together"),
        (["loss-cdf", "RUN", "--images", "0"], "--images 0"),
        (["loss-cdf", "RUN", "--alpha", "1.5"], "--alpha 1.5"),
        (["speed-accuracy"], "needs --run"),
        (["speed-accuracy", "--run", "a=b:c", "--sizes", "0"], "--sizes"),
        (["speed-accuracy", "--run", "a"], "NAME=CONFIG:WEIGHTS"),
        (["speed-accuracy", "--run", "a=none.yaml:none.pth"], "none.yaml does not exist"),
        (["speed-accuracy", "--run", "a=.", "--output", "out"], "no finished training"),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    figure, run_dir, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    config = ["--config-file", str(run_dir)]
    status, _, err = figure(*(y for x in arguments for y in (config if x == "RUN" else [x])))
    assert status == 2
    (line,) = [x for x in err.splitlines() if x.startswith("focal-retina figure: ")]
    assert message in line


def test_diverged_weights_are_named_with_the_image(figure, run_dir):
    path = run_dir / "model_final.pth"
    weights = torch.load(path, weights_only=True)
    weights["model"]["head.cls_score.bias"].fill_(float("nan"))
    torch.save(weights, path)
    status, _, err = figure("loss-cdf", "--config-file", run_dir)
    assert status == 2
    assert ".jpg: NaN or infinite logits" in err
