"""focal-retina figure, as a user calls it, on a model of toy size."""

import json

import pytest
from helpers import make_run

from focal_retina.figures.loss_cdf import read_loss_cdf


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("toy") / "run", ("tiny",), SCORE_THRESH_TEST=0.0)


@pytest.fixture
def figure(command, register_tiny):
    """Call the command; returns what it prints."""

    def call(*arguments):
        status, out, err = command("figure", *arguments, *register_tiny)
        assert status == 0, err
        return out

    return call


def test_loss_cdf(figure, run_dir, tmp_path):
    out = figure("loss-cdf", "--config-file", run_dir)
    output = run_dir / "loss_distribution"
    assert {x.name for x in output.glob("*.png")} == {"fig4.png", "loss_shares.png"}
    numbers = json.loads((output / "loss_distribution.json").read_text())
    # 64 × 64 pixels, two levels of strides 8 and 16, 9 anchors, two classes
    samples = numbers["samples"]
    assert 0 < samples["negatives"] + samples["positives"] <= 6 * (64 + 16) * 9 * 2
    assert samples["positives"] >= 6 and numbers["drawn"] == samples
    names = {kind: its["names"] for kind, its in numbers["shares"].items()}
    assert names == {"level": ["p3", "p4"], "class": ["cat", "dog"]}
    assert read_loss_cdf(output) == numbers
    assert f"6 images, {samples['negatives']:,} negatives" in out
    assert "hardest 20% of positives, γ 0:" in out

    # Weights beside a config file, fewer images, other losses, another place.
    flags = ["--images", 2, "--gamma", 3, "--alpha", -1, "--output", tmp_path / "other"]
    weights = ["MODEL.WEIGHTS", run_dir / "model_final.pth"]
    figure("loss-cdf", *flags, "--config-file", run_dir / "config.yaml", *weights)
    numbers = json.loads((tmp_path / "other" / "loss_distribution.json").read_text())
    assert (numbers["images"], numbers["gammas"], numbers["alpha"]) == (2, [3.0], -1.0)


def test_speed_accuracy(figure, assert_user_error, run_dir, register_tiny, tmp_path):
    output = tmp_path / "fig"
    flags = ["--run", f"toy={run_dir}", "--sizes", 48, 64, "--images", 2, "--output", output]
    figure("speed-accuracy", *flags)
    assert (output / "fig2.png").exists()
    unresized = [*flags, *register_tiny, "INPUT.MIN_SIZE_TEST", 0]
    assert_user_error("SIZE_TEST is 0", "figure", "speed-accuracy", *unresized)
    before = (output / "speed_accuracy.json").read_text()
    numbers = json.loads(before)
    assert [(m["run"], m["size"]) for m in numbers["measurements"]] == [("toy", 48), ("toy", 64)]
    assert numbers["paper"]["others"]["YOLOv2"] == [25, 21.6]
    assert figure("speed-accuracy", *flags).count("measured before") == 2
    assert (output / "speed_accuracy.json").read_text() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["loss-cdf", "RUN", "--gamma", "-1"], "gammas are"),
        (["loss-cdf", "RUN", "MODEL.META_ARCHITECTURE", "RetinaNet"], "FocalRetinaNet"),
        (["loss-cdf", "RUN", "--images", "0"], "--images 0"),
        (["speed-accuracy"], "needs --run"),
        (["speed-accuracy", "--run", "a=b:c", "--sizes", "0"], "--sizes"),
        (["speed-accuracy", "--run", "a"], "NAME=CONFIG:WEIGHTS"),
        (["speed-accuracy", "--run", "a=.", "--output", "out"], "no finished training"),
    ],
)
def test_user_errors(
    assert_user_error, run_dir, register_tiny, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    config = ["--config-file", run_dir]
    arguments = [y for x in arguments for y in (config if x == "RUN" else [x])]
    assert_user_error(message, "figure", *arguments, *register_tiny)
