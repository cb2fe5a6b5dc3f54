"""focal-retina figure, as a user calls it, on a model of toy size."""

import json

import pytest
from helpers import make_run

from focal_retina.commands import main
from focal_retina.figures.loss_cdf import read_loss_cdf


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("toy") / "run", ("tiny",), SCORE_THRESH_TEST=0.0)


@pytest.fixture
def figure(register_tiny, capsys):
    """Call the command; returns what it prints, or the one line of its error."""

    def call(*arguments, status=0):
        found = main(["figure", *map(str, arguments), *register_tiny])
        out, err = capsys.readouterr()
        assert found == status, err
        errors = [x for x in err.splitlines() if x.startswith("focal-retina figure: ")]
        assert len(errors) == bool(status)
        return errors[0] if status else out

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


def test_speed_accuracy(figure, run_dir, tmp_path):
    output = tmp_path / "fig"
    flags = ["--run", f"toy={run_dir}", "--sizes", 48, 64, "--images", 2, "--output", output]
    figure("speed-accuracy", *flags)
    assert (output / "fig2.png").exists()
    unresized = ["INPUT.MIN_SIZE_TEST", 0]
    assert "SIZE_TEST is 0" in figure("speed-accuracy", *flags, *unresized, status=2)
    before = (output / "speed_accuracy.json").read_text()
    numbers = json.loads(before)
    assert [(m["run"], m["size"]) for m in numbers["measurements"]] == [("toy", 48), ("toy", 64)]
    assert numbers["paper"]["others"]["YOLOv2"] == [25, 21.6]
    assert figure("speed-accuracy", *flags).count("measured before") == 2
    assert (output / "speed_accuracy.json").read_text() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["loss-cdf"], "--config-file"),
        (["loss-cdf", "--config-file", "."], "no finished training"),
        (["loss-cdf", "RUN", "--gamma", "-1"], "gammas are"),
        (["loss-cdf", "RUN", "MODEL.META_ARCHITECTURE", "RetinaNet"], "FocalRetinaNet"),
        (["loss-cdf", "RUN", "MODEL.FPN.OUT_CHANNELS", "16"], "don't belong together"),
        (["loss-cdf", "RUN", "--images", "0"], "--images 0"),
        (["speed-accuracy"], "needs --run"),
        (["speed-accuracy", "--run", "a=b:c", "--sizes", "0"], "--sizes"),
        (["speed-accuracy", "--run", "a"], "NAME=CONFIG:WEIGHTS"),
        (["speed-accuracy", "--run", "a=.", "--output", "out"], "no finished training"),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    figure, run_dir, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    config = ["--config-file", run_dir]
    arguments = [y for x in arguments for y in (config if x == "RUN" else [x])]
    assert message in figure(*arguments, status=2)
