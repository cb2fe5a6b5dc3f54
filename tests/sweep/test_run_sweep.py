"""A whole sweep, its trials taken as done."""

import json
import subprocess
from dataclasses import asdict, replace

import pytest
from helpers import default_cfg

from focal_retina.files import file_lock
from focal_retina.sweep.grid import CodeInputs, Row, Sweep, Tuning
from focal_retina.sweep.results import TrialResult, read_result
from focal_retina.sweep.sweep import choose_tuned, git_commit, run_sweep

SWEEP = Sweep("table", "A table", "", "a", [Row("a", {}), Row("b", {"SOLVER.MOMENTUM": 0.5})])
TUNED = replace(SWEEP, tuning=Tuning("SOLVER.BASE_LR", [0.1, 0.2], seeds=2))


class DoneTrials:
    """A runner that finds every trial done, and can measure the loss of row a only."""

    inputs = CodeInputs()

    def __init__(self, root):
        self.root = root

    def run(self, trials, on_poll):
        fields = [(t.row, t.seed, t.stage, t.tuned, "done", {"AP": t.tuned or 1}) for t in trials]
        on_poll([])
        return [TrialResult(*x) for x in fields]

    def measure_losses(self, results):
        return [x for x in results if x.row == "b"]


@pytest.fixture
def run(tmp_path):
    def call(sweep, **options):
        about = {"base_config": "base.yaml", "command": "sweep"}
        cfg = default_cfg("DATASETS.TEST", ("test",))
        return run_sweep(sweep, cfg, DoneTrials(tmp_path), [4, 3], about, **options)

    return call


def test_the_tuned_value_is_tested_with_fresh_seeds(run, tmp_path):
    results = run(TUNED, tune_on=["coco_2014_val"])
    tests = [(x.row, x.seed, x.tuned) for x in results if x.stage == "test"]
    assert tests == [("a", 4, 0.2), ("b", 4, 0.2), ("a", 3, 0.2), ("b", 3, 0.2)]
    content = json.loads((tmp_path / "table" / "results.json").read_text())
    assert content["tuned"] == {"a": 0.2, "b": 0.2} and content["command"] == "sweep"
    assert len(content["trials"]) == 2 * 2 * 2 + 4
    header, *lines = (tmp_path / "table" / "results.csv").read_text().splitlines()
    assert header.startswith("row,seed,stage,tuned,status,seconds,") and header.endswith(",AP")
    assert len(lines) == 12


def test_a_loss_that_was_not_measured_is_an_error_after_the_report(run, tmp_path):
    with pytest.raises(ValueError, match=r"the loss of b was not measured: see .*console\.txt"):
        run(SWEEP, measure_losses=True)
    assert (tmp_path / "table" / "report.html").stat().st_size > 0


def test_without_test_data_nothing_is_trained(tmp_path):
    cfg, runner = default_cfg("DATASETS.TEST", ()), DoneTrials(tmp_path)
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        run_sweep(SWEEP, cfg, runner, [1], {})


def test_two_sweeps_do_not_share_a_folder(run, tmp_path):
    with file_lock(tmp_path / ".lock"), pytest.raises(ValueError, match="another sweep is running"):
        run(SWEEP)


def test_the_tuned_value_is_that_of_the_highest_mean():
    tried = [("a", 0.1, 10), ("a", 0.1, 30), ("a", 0.2, 25), ("a", 0.2, 26), ("b", 0.1, 5)]
    results = [TrialResult(row, 1, "tune", x, "done", {"AP": ap}) for row, x, ap in tried]
    failed = TrialResult("b", 1, "tune", 0.2, "failed")
    assert choose_tuned(TUNED, [*results, failed]) == {"a": 0.2, "b": 0.1}
    with pytest.raises(ValueError, match="every tuning trial of 'b' failed"):
        choose_tuned(TUNED, [*results[:4], failed])


def test_a_result_file_of_an_earlier_version_is_read(tmp_path):
    """docs/results/ was written by it."""
    content = asdict(TrialResult("a", 1, "test", None, "done", {"AP": 9.9, "APl": None}))
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "result.json").metrics == {"AP": 9.9}


def test_the_commit_says_whether_the_checkout_is_changed(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.check_output(["git", *who, *arguments], cwd=tmp_path, text=True).strip()

    assert git_commit(tmp_path) == ""
    (tmp_path / "file").write_text("a")
    for words in ("init", "add file", "commit -m one", "tag v1"):
        git(*words.split())
    head = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == head
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{head}+"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_commit(tmp_path) == ""
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) == ""
