"""focal-retina sweep as a user starts it, interrupts it and starts it again."""

import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import QUICKSTART, ROOT, TINY_TRAINING, is_running, wait_for

SWEEP = """
title: A table
setting: something
reference: b
rows:
  - {name: a, overrides: {MODEL.RETINANET.FOCAL_LOSS_GAMMA: 0.0}, paper: {AP: 30.0}}
  - {name: b, overrides: {MODEL.RETINANET.FOCAL_LOSS_GAMMA: 2.0}, paper: {AP: 34.0}}
"""


@pytest.fixture
def start(register_tiny, tmp_path):
    """Start the command on trials that behave as fake_train.py says."""
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "focal_retina", "sweep", tmp_path / "sweep.yaml"]
    command += ["--config-file", QUICKSTART, *register_tiny, *TINY_TRAINING.split()]
    command += ["--train-script", ROOT / "tests" / "sweep" / "fake_train.py", "--seeds", "1"]
    command += ["--output", tmp_path / "out", "SOLVER.MAX_ITER", "10", "MODEL.WEIGHTS"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = []

    def call(behaviour):
        (tmp_path / behaviour).touch()
        words = [*map(str, command), str(tmp_path / behaviour)]
        processes.append(subprocess.Popen(words, env=env, **streams))
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
        process.wait()


def assert_finishes(start, behaviour, out):
    """The same command again ends with every iteration of both trials once, and a report."""
    process = start(behaviour)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert "2/2 trials" in err
    results = json.loads((out / "sweep" / "results.json").read_text())
    assert [(x["row"], x["status"]) for x in results["trials"]] == [("a", "done"), ("b", "done")]
    for trial in results["trials"]:
        metrics = out / "sweep" / trial["directory"] / "metrics.json"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [x["iteration"] for x in rows] == list(range(1, 11))
    assert (out / "sweep" / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_ended_sweep_leaves_no_process_and_goes_on(start, tmp_path, how):
    first = start("wait")
    trials = tmp_path / "out" / "trials"
    wait_for(lambda: list(trials.glob("*/model_*.pth")) or first.poll() is not None)
    assert first.poll() is None, first.stderr.read()
    os.kill(first.pid, how)
    first.wait(60)
    if how == signal.SIGINT:
        assert first.returncode == 130
        assert "the same command goes on" in first.stderr.read()
    pids = [x["pid"] for file in trials.glob("*/starts.json") for x in json.loads(file.read_text())]
    assert pids
    wait_for(lambda: not any(map(is_running, pids)))
    for directory in trials.iterdir():
        (directory / "go").touch()
    assert_finishes(start, "wait", tmp_path / "out")


@pytest.mark.slow
def test_a_sweep_killed_at_ten_moments_goes_on(start, tmp_path):
    out = tmp_path / "out"

    def iterations():
        return sum(x.read_text().count("\n") for x in out.glob("trials/*/metrics.json"))

    def exists(pattern):
        return lambda: list(out.glob(pattern))

    moments = [out.exists, exists("trials/*/config.yaml")]
    moments += [lambda n=n: iterations() >= n for n in (1, 4, 8, 12, 16, 20)]
    moments += [exists("trials/*/result.json"), exists("sweep/results.json")]
    for moment in moments:
        process = start("slow")
        wait_for(lambda: moment() or process.poll() is not None)  # noqa: B023
        process.kill()
        process.wait()
    assert_finishes(start, "slow", out)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.yaml"], "no sweep file none.yaml"),
        (["{sweep}", "--gpus-per-trial", "1", "MODEL.DEVICE", "cpu"], "MODEL.DEVICE is cpu here"),
    ],
)
def test_user_errors(assert_user_error, tmp_path, arguments, message):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    given = [x.format(sweep=tmp_path / "sweep.yaml") for x in arguments]
    assert_user_error(message, "sweep", "--config-file", QUICKSTART, *given)
