"""focal-retina sweep as a user starts it, interrupts it and starts it again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import QUICKSTART, ROOT, TINY_TRAINING

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
    """Start the command on trials that wait in the middle until ``go()`` is called."""
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "wait").touch()
    command = [sys.executable, "-m", "focal_retina", "sweep", tmp_path / "sweep.yaml"]
    command += ["--config-file", QUICKSTART, *register_tiny, *TINY_TRAINING.split()]
    command += ["--train-script", ROOT / "tests" / "sweep" / "fake_train.py", "--seeds", "1"]
    command += ["--output", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "wait"]
    command += ["SOLVER.MAX_ITER", "10"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = []

    def call():
        processes.append(subprocess.Popen([*map(str, command)], env=env, **streams))
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_ended_sweep_leaves_no_process_and_goes_on(start, tmp_path, how):
    first = start()
    trials = tmp_path / "out" / "trials"
    wait_for(lambda: len(list(trials.glob("*/model_*.pth"))) > 0 or first.poll() is not None)
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
    second = start()
    _, err = second.communicate(timeout=180)
    assert second.returncode == 0, err
    assert "2/2 trials" in err
    results = json.loads((tmp_path / "out" / "sweep" / "results.json").read_text())
    assert [(x["row"], x["status"]) for x in results["trials"]] == [("a", "done"), ("b", "done")]
    for trial in results["trials"]:
        metrics = tmp_path / "out" / "sweep" / trial["directory"] / "metrics.json"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [x["iteration"] for x in rows] == list(range(1, 11))
    assert (tmp_path / "out" / "sweep" / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.yaml"], "no sweep file none.yaml"),
        (["{sweep}", "--config-file", "none.yaml"], "none.yaml does not exist"),
        (["{sweep}", "NO.SUCH_KEY", "1"], "NO.SUCH_KEY"),
    ],
)
def test_user_errors(assert_user_error, tmp_path, arguments, message):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    given = [x.format(sweep=tmp_path / "sweep.yaml") for x in arguments]
    assert_user_error(message, "sweep", "--config-file", QUICKSTART, *given)
