"""A whole sweep: tune where the file says so, test, collect, report."""

import fcntl
import shlex
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .grid import Sweep
from .loss_cdfs import loss_folder, trials_to_measure
from .plan import Trial, plan_tests, plan_tuning
from .process import CONSOLE_FILE
from .progress import Progress
from .report import write_sweep_report
from .results import TrialResult, write_results
from .runner import TrialRunner
from .statistics import summarize


def run_sweep(
    sweep: Sweep,
    base: CfgNode,
    runner: TrialRunner,
    seeds: Sequence[int],
    *,
    command: Sequence[str],
    base_config: str,
    loss_script: Path | None = None,
) -> list[TrialResult]:
    """Run what is unfinished, and write results.json, results.csv and the report.

    Those are in ``runner.root / sweep.name``; the trials of all sweeps share
    ``runner.root / "trials"``, so that a config that two tables have in common trains once.

    Args:
        base: the frozen config of all rows.
        seeds: of the test.
        command: of this sweep, for the report.
        base_config: the base config's file, for the report.
        loss_script: tools/analyze_loss.py, if the report is to show where the loss of a trained
            model of each row is.

    Returns:
        The results of tuning and test; failed ones among them.

    Raises:
        ValueError: a row that cannot be planned; a row for which every tuning trial failed; another
            sweep that uses ``runner.root`` now; after the report: a loss that was not measured.
    """
    directory = runner.root / sweep.name
    directory.mkdir(parents=True, exist_ok=True)
    with _exclusive(runner.root):
        # A mistake in a row is found before the tuning, not after it.
        tests = plan_tests(sweep, base, runner.inputs, seeds)
        tuning = _run(runner, plan_tuning(sweep, base, runner.inputs), f"{sweep.name}: tuning")
        chosen: dict[str, Any] = {}
        if sweep.tuning is not None:
            chosen = choose_tuned(sweep, tuning)
            tests = plan_tests(sweep, base, runner.inputs, seeds, chosen)
        results = [*tuning, *_run(runner, tests, sweep.name)]
        unmeasured = []
        if loss_script is not None:
            trained = trials_to_measure(summarize(sweep, results))
            unmeasured = runner.measure_losses(trained, loss_script)

        command_line = shlex.join(command)
        about = {
            "sweep": sweep.name,
            "title": sweep.title,
            "base_config": base_config,
            "command": command_line,
            "seeds": list(seeds),
            "tuned": chosen,
        }
        # The report finds a trial's metrics.json from its own folder.
        results = [replace(x, directory=f"../{x.directory}") for x in results]
        write_results(directory, results, about)
        write_sweep_report(
            sweep,
            results,
            directory,
            command=command_line,
            base_config=base_config,
            num_seeds=len(seeds),
        )
    if unmeasured:
        folder = loss_folder(runner.root / unmeasured[0].directory)
        names = "; ".join(x.row for x in unmeasured)
        raise ValueError(f"the loss was not measured of {names}: see {folder / CONSOLE_FILE}")
    return results


def choose_tuned(sweep: Sweep, results: Sequence[TrialResult]) -> dict[str, Any]:
    """For each row the tried value of the highest mean AP over the seeds; the first one at a tie.

    Raises:
        ValueError: a row without any finished trial.
    """
    assert sweep.tuning is not None
    chosen = {}
    for row in sweep.rows:
        scores = {}
        for value in sweep.tuning.values:
            aps = [
                x.metrics["AP"]
                for x in results
                if (x.row, x.tuned, x.status) == (row.name, value, "done")
            ]
            if aps:
                scores[value] = statistics.fmean(aps)
        if not scores:
            raise ValueError(f"every tuning trial of {row.name!r} failed: see their console.txt")
        chosen[row.name] = max(scores, key=scores.__getitem__)
    return chosen


def git_commit(root: Path) -> str:
    """Commit of the checkout at ``root``, with "+" where files differ from it; "" if it is none."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(runner: TrialRunner, trials: list[Trial], description: str) -> list[TrialResult]:
    if not trials:
        return []
    with Progress(trials=trials, root=runner.root, description=description) as progress:
        return runner.run(trials, progress)


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Hold the sweeps' folder alone."""
    with open(root / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another sweep is running in {root}: give --output another"
            ) from error
        yield
