"""Trials on Ray: as many at once as fit, retried, resumed, collected."""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from tqdm import tqdm

import focal_retina

from . import process
from .loss_cdfs import loss_folder, read_trial_losses
from .plan import CodeInputs, Trial
from .process import CONSOLE_FILE, read_usage, write_atomically
from .results import RESULT_FILE, TrialResult, read_result, write_result

_logger = logging.getLogger(__name__)

_ERROR_LINES = 15
_PACKAGE_ROOT = str(Path(focal_retina.__file__).parents[1])

# A function of the standard library, so that Ray's workers import neither torch nor Detectron2.
# Retries are counted here, not by Ray.
_call = ray.remote(max_retries=0)(subprocess.call)


def find_result(root: Path, trial: Trial) -> TrialResult | None:
    """The result of an earlier trial with this one's config, whichever table it was run for."""
    for path in sorted(root.glob(f"trials/*-{trial.config_hash[:8]}/{RESULT_FILE}")):
        result = read_result(path)
        if result.config_hash == trial.config_hash:
            return replace(result, row=trial.row, stage=trial.stage, tuned=trial.tuned)
    return None


class TrialRunner:
    """Runs trials as processes of a training script on Ray.

    A trial's folder holds config.yaml, the training's own output, console.txt and, once it is
    done, result.json; a trial that has one is not run again. One without goes on from its last
    checkpoint.
    """

    def __init__(
        self,
        *,
        root: Path,
        train_script: Path,
        inputs: CodeInputs,
        cpus_per_trial: int = 1,
        gpus_per_trial: float = 0.0,
        retries: int = 1,
        git_commit: str = "",
        poll_seconds: float = 1.0,
    ):
        """
        Args:
            root: the sweeps' folder; on a cluster, one that every node sees.
            train_script: with train_net.py's command line.
            inputs: what the script is to register and import.
            cpus_per_trial: cores that Ray sets aside for one, which are also its threads.
            gpus_per_trial: GPUs that Ray sets aside for one; it sees no others.
            retries: how often a failed trial is started again.
            git_commit: written beside each result.
            poll_seconds: between two calls of ``on_poll``.
        """
        self.root = root.resolve()
        self.train_script = train_script.resolve()
        self.inputs = inputs
        self.cpus_per_trial = cpus_per_trial
        self.gpus_per_trial = gpus_per_trial
        self.retries = retries
        self.git_commit = git_commit
        self.poll_seconds = poll_seconds

    def run(
        self, trials: Sequence[Trial], on_poll: Callable[[Sequence[TrialResult]], None]
    ) -> list[TrialResult]:
        """Run what has no result yet.

        Args:
            trials: with different directories.
            on_poll: called with the results so far, again and again.

        Returns:
            A result for each trial, in the order of ``trials``.
        """
        results = {t.directory: find_result(self.root, t) for t in trials}
        waiting = [t for t in trials if results[t.directory] is None]
        attempts = {self._submit(trial): (trial, 1) for trial in waiting}
        while True:
            on_poll([x for x in results.values() if x is not None])
            if not attempts:
                break
            finished, _ = ray.wait(list(attempts), timeout=self.poll_seconds)
            for reference in finished:
                trial, number = attempts.pop(reference)
                error = self._error_of(reference, trial)
                if error and number <= self.retries:
                    _logger.warning("%s failed and is started again: %s", trial.label, error)
                    attempts[self._submit(trial)] = (trial, number + 1)
                else:
                    results[trial.directory] = self._collect(trial, number, error)
        return [results[t.directory] for t in trials]  # type: ignore[misc]

    def measure_losses(self, results: Sequence[TrialResult], script: Path) -> list[TrialResult]:
        """Measure where the loss of trained models is, into each trial's folder.

        Args:
            results: of :meth:`run`, done; one that is measured already is left as it is.
            script: with analyze_loss.py's command line.

        Returns:
            Those that could not be measured; :func:`loss_folder`'s console.txt says why.
        """
        running = {
            self._start_measuring(result, script): result
            for result in results
            if read_trial_losses(self.root / result.directory) is None
        }
        waiting = list(running)
        with tqdm(total=len(running), desc="loss distributions", unit="model") as bar:
            while waiting:
                finished, waiting = ray.wait(waiting)
                bar.update(len(finished))
        return [
            result
            for result in running.values()
            if read_trial_losses(self.root / result.directory) is None
        ]

    def _start_measuring(self, result: TrialResult, script: Path) -> ray.ObjectRef:
        trial = self.root / result.directory
        output = loss_folder(trial)
        output.mkdir(exist_ok=True)
        arguments = ["--config-file", str(trial / "config.yaml"), *self.inputs.arguments()]
        arguments += ["--output", str(output), "MODEL.WEIGHTS", str(trial / "model_final.pth")]
        label = f"{result.row} #{result.seed}: loss distribution"
        return self._start(label, output, script.resolve(), arguments)

    def _submit(self, trial: Trial) -> ray.ObjectRef:
        directory = self.root / trial.directory
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "config.yaml", trial.config_yaml)
        arguments = ["--config-file", str(directory / "config.yaml"), "--resume"]
        arguments += [*self.inputs.arguments(), "OUTPUT_DIR", str(directory)]
        return self._start(trial.label, directory, self.train_script, arguments)

    def _start(
        self, label: str, directory: Path, script: Path, arguments: Sequence[str]
    ) -> ray.ObjectRef:
        command = [sys.executable, process.__file__, directory, script, *arguments]
        packages = os.pathsep.join([_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")])
        variables = {"OMP_NUM_THREADS": str(self.cpus_per_trial), "PYTHONPATH": packages}
        return _call.options(
            num_cpus=self.cpus_per_trial,
            num_gpus=self.gpus_per_trial,
            name=label,
            runtime_env={"env_vars": variables},
        ).remote(
            [str(part) for part in command],
            cwd=os.getcwd(),
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for the sweep, which ends its trials itself
            start_new_session=True,
        )

    def _error_of(self, reference: ray.ObjectRef, trial: Trial) -> str:
        """Why an attempt failed, "" if it did not."""
        try:
            status = ray.get(reference)
        except ray.exceptions.RayError as error:  # a node that died, a worker that was killed
            return f"{type(error).__name__}: {error}"
        directory = self.root / trial.directory
        if status == 0 and last_iteration(directory) >= trial.max_iter:
            return ""
        lines = _tail(directory / CONSOLE_FILE)
        return f"exit status {status}\n{lines}"

    def _collect(self, trial: Trial, attempts: int, error: str) -> TrialResult:
        directory = self.root / trial.directory
        seconds, peak = read_usage(directory)
        result = TrialResult(
            row=trial.row,
            seed=trial.seed,
            stage=trial.stage,
            tuned=trial.tuned,
            status="failed" if error else "done",
            metrics={} if error else read_box_metrics(directory, trial.test_dataset),
            seconds=seconds,
            peak_memory_mb=peak,
            config_hash=trial.config_hash,
            git_commit=self.git_commit,
            attempts=attempts,
            directory=trial.directory,
            error=error,
        )
        if not error:  # a failed one is tried again when the sweep is
            write_result(directory / RESULT_FILE, result)
            for checkpoint in directory.glob("model_[0-9]*.pth"):
                checkpoint.unlink()
        return result


def last_row(directory: Path) -> dict[str, float]:
    """The last complete line of a trial's metrics.json, {} before there is one."""
    try:
        with open(directory / "metrics.json", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 2**16))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:  # being written
            continue
    return {}


def last_iteration(directory: Path) -> int:
    return int(last_row(directory).get("iteration", 0))


def read_box_metrics(directory: Path, dataset: str) -> dict[str, float]:
    """COCO's box numbers in the last row of metrics.json, in percent, by their names there.

    Detectron2 puts the data set's name before them where several were evaluated. Of a model that
    detects nothing at all it says NaN; its AP is 0.
    """
    prefixes = ("bbox/", f"{dataset}/bbox/")
    metrics = {
        key.removeprefix(prefix): value
        for key, value in last_row(directory).items()
        for prefix in prefixes
        if key.startswith(prefix)
    }
    averages = ("AP", "AP50", "AP75")
    if all(math.isnan(metrics.get(name, 0.0)) for name in averages):
        metrics.update(dict.fromkeys(averages, 0.0))
    return metrics


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_ERROR_LINES:])
