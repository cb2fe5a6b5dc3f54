"""A whole sweep: tune where the file says so, test, collect, report."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ..files import file_lock
from .grid import Sweep, Trial, plan_tests, plan_tuning
from .report import write_sweep_report
from .results import LOSS_FOLDER, TrialResult, last_row, summarize, tuned_ap, write_results
from .runner import CONSOLE_FILE, TrialRunner


def run_sweep(
    sweep: Sweep,
    base: CfgNode,
    runner: TrialRunner,
    seeds: Sequence[int],
    about: Mapping[str, str],
    tune_on: Sequence[str] = (),
    measure_losses: bool = False,
) -> list[TrialResult]:
    """Run what is unfinished, and write results.json, results.csv and the report into
    ``runner.root / sweep.name``. The trials of all sweeps share ``runner.root / "trials"``, so that
    a config that two tables have in common trains once. ``about`` has this command line as
    "command", and "base_config", the file of ``base``. ``seeds`` are the test's; ``tune_on`` is the
    data set of the tuning, see :func:`.plan_tuning`.

    A ValueError says that a row cannot be planned, or has no tuning trial that succeeded; that
    another sweep uses ``runner.root`` now; after the report, that a loss was not measured.
    """
    if not seeds:
        raise ValueError("a sweep needs at least one seed")
    if not base.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: a sweep compares the AP on it")
    directory = runner.root / sweep.name
    directory.mkdir(parents=True, exist_ok=True)
    in_use = f"another sweep is running in {runner.root}: give --output another"
    with file_lock(runner.root / ".lock", if_busy=in_use):
        # A mistake in a row is found before the tuning, not after it.
        plan_tests(sweep, base, runner.inputs, seeds, {})
        to_tune = plan_tuning(sweep, base, runner.inputs, tune_on)
        tuning = _run(runner, to_tune, f"{sweep.name}: tuning")
        chosen = choose_tuned(sweep, tuning)
        tests = _run(runner, plan_tests(sweep, base, runner.inputs, seeds, chosen), sweep.name)
        trained = [s.first_done for s in summarize(sweep, tests)] if measure_losses else []
        unmeasured = runner.measure_losses([trial for trial in trained if trial])
        content: dict[str, Any] = {"sweep": sweep.name, "title": sweep.title, **about}
        content |= {"seeds": list(seeds), "tuned": chosen, "tune_on": list(tune_on)}
        # The report finds a trial's metrics.json from its own folder.
        results = [replace(x, directory=f"../{x.directory}") for x in (*tuning, *tests)]
        write_results(directory, results, content)
        write_sweep_report(sweep, results, directory, content)
    if unmeasured:
        console = runner.root / unmeasured[0].directory / LOSS_FOLDER / CONSOLE_FILE
        names = "; ".join(x.row for x in unmeasured)
        raise ValueError(f"the loss of {names} was not measured: see {console}")
    return results


def choose_tuned(sweep: Sweep, results: Sequence[TrialResult]) -> dict[str, Any]:
    """For each row the tried value of the highest mean AP, the first one at a tie."""
    chosen: dict[str, Any] = {}
    if sweep.tuning is None:
        return chosen
    for row in sweep.rows:
        aps = [(tuned_ap(results, row, value), value) for value in sweep.tuning.values]
        finished = [(ap.mean, value) for ap, value in aps if ap.n]
        if not finished:
            raise ValueError(f"every tuning trial of {row.name!r} failed: see their {CONSOLE_FILE}")
        _, chosen[row.name] = max(finished, key=lambda pair: pair[0])
    return chosen


def git_commit(root: Path) -> str:
    """Commit of the checkout at ``root``, with "+" where files differ from it; "" if it is none, or
    git is missing or refuses, as it does where another user owns the files."""
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def _run(runner: TrialRunner, trials: list[Trial], name: str) -> list[TrialResult]:
    """Run trials behind a bar of all their iterations."""
    if not trials:
        return []
    total = sum(trial.cfg.SOLVER.MAX_ITER for trial in trials)
    with tqdm(total=total, unit="it", dynamic_ncols=True) as bar:

        def show(results: Sequence[TrialResult]) -> None:
            # By their hash: a trial of another table with the same config has another folder.
            finished = {result.config_hash for result in results}
            unfinished = [trial for trial in trials if trial.config_hash not in finished]
            left = sum(trial.cfg.SOLVER.MAX_ITER for trial in unfinished)
            left -= sum(last_row(runner.root / x.directory)["iteration"] for x in unfinished)
            if not bar.n:  # what an earlier run of the sweep did is not this one's speed
                bar.initial = total - left
            bar.set_description_str(f"{name} {len(results)}/{len(trials)} trials", refresh=False)
            bar.update(total - left - bar.n)

        return runner.run(trials, show)
