"""Trials on Ray: as many at once as fit, retried, resumed, collected."""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from ..files import atomic_write
from . import process
from .plan import CodeInputs, Trial
from .process import CONSOLE_FILE, read_usage
from .results import (
    LOSS_FOLDER,
    RESULT_FILE,
    TrialResult,
    last_row,
    read_box_metrics,
    read_losses,
    read_result,
    write_json,
)

_logger = logging.getLogger(__name__)

_ERROR_LINES = 15
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_SECONDS_TO_CONNECT = 10.0

# A function of the standard library, so that Ray's workers import neither torch nor Detectron2.
# Retries are counted here, not by Ray.
_call = ray.remote(max_retries=0)(subprocess.call)


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Join the Ray cluster at ``address``, or start Ray on this machine and end it afterwards.

    Raises:
        ConnectionError: there is no cluster at ``address``.
    """
    here: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    else:
        _check_reachable(address)
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray would try an address without a listener for minutes, and say so in its log alone."""
    match = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    try:
        if match is not None:  # else "auto" and the like, which Ray looks up itself
            socket.create_connection((match[1], int(match[2])), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with "
            "`ray start --head`, or leave --address out to run on this machine"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TrialRunner:
    """Runs trials as processes of a training command on Ray.

    A trial's folder holds config.yaml, the training's own output, console.txt and, once it is
    done, result.json; a trial that has one is not run again. One without goes on from its last
    checkpoint.
    """

    root: Path  # the sweeps' folder, absolute; on a cluster, one that every node sees
    inputs: CodeInputs  # what the training is to register and import
    train: Sequence[str | Path] = ("-m", "focal_retina", "train")  # arguments of Python
    measure_loss: Sequence[str | Path] = ("-m", "focal_retina", "figure", "loss-cdf")
    cpus_per_trial: int = 1  # that Ray sets aside for one, which are also its threads
    gpus_per_trial: float = 0.0  # that Ray sets aside for one; it sees no others
    retries: int = 1  # how often a failed trial is started again
    git_commit: str = ""  # written beside each result
    poll_seconds: float = 1.0  # between two calls of ``on_poll``

    def run(
        self, trials: Sequence[Trial], on_poll: Callable[[Sequence[TrialResult]], None]
    ) -> list[TrialResult]:
        """Run what has no result yet, and return a result for each trial, in their order.

        ``on_poll`` is called with the results so far, again and again.
        """
        found = {t.directory: self._find_result(t) for t in trials}
        results = {directory: x for directory, x in found.items() if x is not None}
        attempts = {self._submit(t): (t, 1) for t in trials if t.directory not in results}
        on_poll(list(results.values()))
        while attempts:
            finished, _ = ray.wait(list(attempts), timeout=self.poll_seconds)
            for reference in finished:
                trial, number = attempts.pop(reference)
                error = self._error_of(reference, trial)
                if error and number <= self.retries:
                    _logger.warning("%s failed and is started again: %s", trial.label, error)
                    attempts[self._submit(trial)] = (trial, number + 1)
                else:
                    results[trial.directory] = self._collect(trial, number, error)
            on_poll(list(results.values()))
        return [results[t.directory] for t in trials]

    def measure_losses(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Measure where the loss of trained models is, unless it is known already.

        It returns those that could not be measured; console.txt in :data:`LOSS_FOLDER` says why.
        """
        missing = [x for x in results if read_losses(self.root / x.directory) is None]
        waiting = [self._start_measuring(result) for result in missing]
        for _ in tqdm(missing, desc="loss distributions", unit="model"):
            _, waiting = ray.wait(waiting)
        return [x for x in missing if read_losses(self.root / x.directory) is None]

    def _find_result(self, trial: Trial) -> TrialResult | None:
        """The result of an earlier trial with this one's config, whichever table it was run for."""
        for path in sorted(self.root.glob(f"trials/*-{trial.config_hash[:8]}/{RESULT_FILE}")):
            result = read_result(path)
            if result.config_hash == trial.config_hash:
                return replace(result, row=trial.row, stage=trial.stage, tuned=trial.tuned)
        return None

    def _submit(self, trial: Trial) -> ray.ObjectRef:
        directory = self.root / trial.directory
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / "config.yaml", "w") as file:
            file.write(trial.cfg.dump())
        command = [*self.train, "--config-file", directory / "config.yaml", "--resume"]
        command += [*self.inputs.arguments(), "OUTPUT_DIR", directory]
        return self._start(trial.label, directory, command)

    def _start_measuring(self, result: TrialResult) -> ray.ObjectRef:
        trial = self.root / result.directory
        output = trial / LOSS_FOLDER
        output.mkdir(exist_ok=True)
        command = [*self.measure_loss, "--config-file", trial / "config.yaml"]
        command += [*self.inputs.arguments(), "--output", output]
        command += ["MODEL.WEIGHTS", trial / "model_final.pth"]
        return self._start(f"{result.row} #{result.seed}: loss", output, command)

    def _start(self, label: str, directory: Path, command: Sequence[str | Path]) -> ray.ObjectRef:
        packages = os.pathsep.join([_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")])
        variables = {"OMP_NUM_THREADS": str(self.cpus_per_trial), "PYTHONPATH": packages}
        return _call.options(
            num_cpus=self.cpus_per_trial,
            num_gpus=self.gpus_per_trial,
            name=label,
            runtime_env={"env_vars": variables},
        ).remote(
            [str(part) for part in (sys.executable, process.__file__, directory, *command)],
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
        if status == 0 and last_row(directory).get("iteration", 0) >= trial.max_iter:
            return ""
        console = directory / CONSOLE_FILE
        text = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
        return "\n".join([f"exit status {status}", *text.splitlines()[-_ERROR_LINES:]])

    def _collect(self, trial: Trial, attempts: int, error: str) -> TrialResult:
        directory = self.root / trial.directory
        seconds, peak = read_usage(directory)
        result = TrialResult(
            row=trial.row,
            seed=trial.seed,
            stage=trial.stage,
            tuned=trial.tuned,
            status="failed" if error else "done",
            metrics={} if error else read_box_metrics(directory, *trial.cfg.DATASETS.TEST[:1]),
            seconds=seconds,
            peak_memory_mb=peak,
            config_hash=trial.config_hash,
            git_commit=self.git_commit,
            attempts=attempts,
            directory=trial.directory,
            error=error,
        )
        if not error:  # a failed one is tried again when the sweep is
            write_json(directory / RESULT_FILE, result.to_json())
            for checkpoint in directory.glob("model_[0-9]*.pth"):
                checkpoint.unlink()
        return result
