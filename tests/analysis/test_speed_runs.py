"""Runs and sizes: what is measured, what is not measured again, and how time is taken."""

import argparse

import pytest
import torch
from torch import nn

from focal_retina.analysis import speed_runs
from focal_retina.analysis.speed_accuracy import Measurement
from focal_retina.analysis.speed_runs import (
    Run,
    measure_runs,
    parse_run,
    read_measurements,
    write_measurements,
)
from focal_retina.engine import UserError


def test_a_run_is_a_directory_or_a_config_and_weights(tmp_path):
    assert parse_run("a=b.yaml:detectron2://x/y.pkl") == Run("a", "b.yaml", "detectron2://x/y.pkl")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"no file .*model_final\.pth"):
        parse_run(f"a={tmp_path}")
    (tmp_path / "model_final.pth").write_text("")
    files = [str(tmp_path / x) for x in ("config.yaml", "model_final.pth")]
    assert parse_run(f"a={tmp_path}") == Run("a", *files)


@pytest.mark.parametrize("spec", ["", "a", "a=", "=b.yaml:c.pth", "a=b.yaml", "a=b.yaml:", "a=:c"])
def test_other_runs_are_refused(spec):
    with pytest.raises(ValueError, match="NAME=CONFIG:WEIGHTS"):
        parse_run(spec)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Call measure_runs with a stand-in for the measuring; returns (results, what was measured)."""
    weights = tmp_path / "model.pth"
    weights.write_text("weights")
    config = tmp_path / "config.yaml"
    config.write_text("DATASETS:\n  TEST: ('focal_shapes_val',)\n")
    measured = []

    def stand_in(cfg, name, size, timed_images):
        assert (size, round(size * 5 / 3)) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        assert str(tmp_path / name / str(size)) == cfg.OUTPUT_DIR
        if name == "broken":
            raise KeyboardInterrupt
        measured.append((name, size))
        key = speed_runs.config_hash(cfg, timed_images)
        return Measurement(name, size, 10.0, 2, {"AP": 50.0}, "set", "device", key)

    monkeypatch.setattr(speed_runs, "_measure", stand_in)

    def call(names, sizes, *opts, images=2):
        measured.clear()
        args = argparse.Namespace(
            opts=["INPUT.MIN_SIZE_TEST", 600, "INPUT.MAX_SIZE_TEST", 1000, *opts],
            imports=[],
            register=[],
            resume=False,
            eval_only=True,
            images=images,
        )
        args.opts += ["MODEL.RETINANET.NUM_CLASSES", 4]
        args.opts += ["MODEL.META_ARCHITECTURE", "FocalRetinaNet"]
        runs = [Run(name, str(config), str(weights)) for name in names]
        results = measure_runs(args, runs, sizes, tmp_path)
        return [(x.run, x.size) for x in results], list(measured)

    call.weights = weights
    return call


def test_what_is_there_is_not_measured_again(measure, tmp_path):
    both = [("a", 400), ("a", 500)]
    assert measure(["a"], [400, 500]) == (both, both)
    assert measure(["a"], [400, 500]) == (both, [])
    # Another run adds to the figure.
    assert measure(["b"], [400]) == ([*both, ("b", 400)], [("b", 400)])
    assert len(read_measurements(tmp_path / "speed_accuracy.json")) == 3


def test_whatever_decides_on_the_numbers_asks_for_a_new_measurement(measure):
    once = [("a", 400)]
    measure(["a"], [400])
    assert measure(["a"], [400], "MODEL.RETINANET.NMS_THRESH_TEST", 0.6) == (once, once)
    assert measure(["a"], [400]) == (once, once)
    assert measure(["a"], [400], images=3) == (once, once)
    measure.weights.write_text("trained for longer")
    assert measure(["a"], [400], images=3) == (once, once)
    assert measure(["a"], [400], images=3) == (once, [])


def test_an_interrupted_call_keeps_what_it_measured(measure, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(["a", "broken"], [400])
    assert [x.run for x in read_measurements(tmp_path / "speed_accuracy.json")] == ["a"]
    assert measure(["a"], [400]) == ([("a", 400)], [])


def test_two_runs_of_one_name_are_refused(measure):
    with pytest.raises(UserError, match="same name"):
        measure(["a", "a"], [400])


def test_time_is_the_median_after_the_warm_up(monkeypatch):
    """The first calls take 100 s and are not counted; of the others one stalls."""
    clock = [0.0]
    durations = iter([100.0, 100.0, 100.0, 1.0, 50.0, 2.0])

    class Model(nn.Module):
        def forward(self, batch):
            assert not self.training and not torch.is_grad_enabled()
            clock[0] += next(durations)

    monkeypatch.setattr(speed_runs.time, "perf_counter", lambda: clock[0])
    model = Model()
    time = speed_runs._median_milliseconds(model, [[{}]] * 3, torch.device("cpu"))
    assert time == 2000
    assert model.training


@pytest.mark.parametrize("content", ["", "[]", '{"measurements": [{"run": "a"}]}', '{"x": 1}'])
def test_a_foreign_json_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "speed_accuracy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no measurements"):
        read_measurements(path)
    assert path.read_text() == content


def test_measurements_survive_the_json(tmp_path):
    path = tmp_path / "speed_accuracy.json"
    assert read_measurements(path) == []
    measurement = Measurement("a", 400, 1.5, 3, {"AP": 2.0}, "set", "device", "0f")
    write_measurements(path, [measurement])
    assert read_measurements(path) == [measurement]
