"""Trials on Ray: as many at once as fit, retried, resumed, collected."""

import contextlib
import ctypes
import fcntl
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from ..figures.loss_cdf import read_loss_cdf
from ..files import atomic_write, write_json
from .grid import CodeInputs, Trial
from .results import LOSS_FOLDER, RESULT_FILE, TrialResult, last_row, read_box_metrics, read_result

_logger = logging.getLogger(__name__)

CONSOLE_FILE = "console.txt"  # in a trial's directory: all that its processes print
_ERROR_LINES = 15
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Join the Ray cluster at ``address``, or start Ray on this machine and end it afterwards. A
    ConnectionError says that there is no cluster at ``address``."""
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
            socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        hint = "start one with `ray start --head`, or leave --address out to run on this machine"
        message = f"--address {address}: no Ray cluster answers there ({error}); {hint}"
        raise ConnectionError(message) from error


def _make_task() -> Any:
    """The task of Ray that runs a command: (its directory, words) -> status, seconds, MiB.

    Ray sends a function inside a function as its code, so that its workers import the modules of
    the standard library that it names, and neither torch nor Detectron2.
    """

    def run(directory: str, command: list[str], cwd: str) -> tuple[int, float, float]:
        libc, worker = ctypes.CDLL(None), os.getpid()

        def end_with_worker() -> None:
            """A killed sweep, whose Ray workers end with it, leaves no training behind."""
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != worker:  # it died before that call
                os._exit(1)

        with open(f"{directory}/.trial.lock", "w") as lock:
            # A training of a killed sweep may take a moment to end. It holds the lock as a child.
            fcntl.flock(lock, fcntl.LOCK_EX)
            start = time.monotonic()
            with open(f"{directory}/{CONSOLE_FILE}", "ab") as console:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=[lock.fileno()],
                    preexec_fn=end_with_worker,
                    start_new_session=True,  # Ctrl-C is for the sweep, which ends its trials itself
                )
            _, status, usage = os.wait4(process.pid, 0)
            with contextlib.suppress(ProcessLookupError):  # no data worker outlives its training
                os.killpg(process.pid, signal.SIGKILL)
            seconds, mebibytes = time.monotonic() - start, usage.ru_maxrss / 2**10  # of KiB
            return os.waitstatus_to_exitcode(status), seconds, mebibytes

    return ray.remote(max_retries=0)(run)  # retries are counted here, not by Ray


@dataclass(frozen=True, kw_only=True)
class TrialRunner:
    """Runs trials as processes of a training command on Ray.

    A trial's folder holds config.yaml, the training's own output, console.txt and, once it is
    done, result.json. One that has no result.json goes on from its last checkpoint.
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

        ``on_poll`` is called with the results so far, again and again. A ValueError says that a
        trial needs more than any node has; Ray would wait for a larger one.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}
        if not any(all(x.get(key, 0) >= n for key, n in needed.items()) for x in nodes):
            hint = "lower --cpus-per-trial or --gpus-per-trial"
            raise ValueError(f"no machine has what a trial needs ({needed}): {hint}")
        results, running = {}, {}
        for trial in trials:
            result = self._find_result(trial)
            if result.status == "done":
                results[trial.directory] = result
            else:
                running[self._train(trial)] = (trial, result)
        on_poll(list(results.values()))
        while running:
            finished, _ = ray.wait(list(running), timeout=self.poll_seconds)
            for reference in finished:
                trial, result = running.pop(reference)
                result = self._add_attempt(result, trial, reference)
                if result.status == "failed" and result.attempts <= self.retries:
                    _logger.warning("%s failed, starts again: %s", trial.directory, result.error)
                    running[self._train(trial)] = (trial, result)
                else:
                    results[trial.directory] = result
            on_poll(list(results.values()))
        return [results[trial.directory] for trial in trials]

    def measure_losses(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Measure where the loss of trained models is, unless it is known already. Returns those
        that could not be measured; console.txt in :data:`LOSS_FOLDER` says why."""
        missing = [x for x in results if not read_loss_cdf(self.root / x.directory / LOSS_FOLDER)]
        if not missing:
            return []
        waiting = [self._measure(result) for result in missing]
        for _ in tqdm(missing, desc="loss distributions", unit="model"):
            _, waiting = ray.wait(waiting)
        return [x for x in missing if not read_loss_cdf(self.root / x.directory / LOSS_FOLDER)]

    def _find_result(self, trial: Trial) -> TrialResult:
        """The result of an earlier trial with this one's config, whichever table it was run for;
        else one of no attempts."""
        for path in sorted(self.root.glob(f"trials/*-{trial.config_hash[:8]}/{RESULT_FILE}")):
            result = read_result(path)
            if result.config_hash == trial.config_hash:
                return replace(result, row=trial.row, stage=trial.stage, tuned=trial.tuned)
        shared = ("row", "seed", "stage", "tuned", "config_hash", "directory")
        fields: dict[str, Any] = {name: getattr(trial, name) for name in shared}
        return TrialResult(**fields, status="failed", attempts=0, git_commit=self.git_commit)

    def _train(self, trial: Trial) -> ray.ObjectRef:
        directory = self.root / trial.directory
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / "config.yaml", "w") as file:
            file.write(trial.cfg.dump())
        command = [*self.train, "--config-file", directory / "config.yaml", "--resume"]
        command += [*self.inputs.arguments(), "OUTPUT_DIR", directory]
        return self._start(directory, command)

    def _measure(self, result: TrialResult) -> ray.ObjectRef:
        trial = self.root / result.directory
        output = trial / LOSS_FOLDER
        output.mkdir(exist_ok=True)
        command = [*self.measure_loss, "--config-file", trial / "config.yaml"]
        command += [*self.inputs.arguments(), "--output", output]
        command += ["MODEL.WEIGHTS", trial / "model_final.pth"]
        return self._start(output, command)

    def _start(self, directory: Path, command: Sequence[str | Path]) -> ray.ObjectRef:
        packages = os.pathsep.join([_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")])
        variables = {"OMP_NUM_THREADS": str(self.cpus_per_trial), "PYTHONPATH": packages}
        task = _make_task().options(
            num_cpus=self.cpus_per_trial,
            num_gpus=self.gpus_per_trial,
            name=str(directory.relative_to(self.root)),
            runtime_env={"env_vars": variables},
        )
        return task.remote(str(directory), [sys.executable, *map(str, command)], os.getcwd())

    def _add_attempt(
        self, before: TrialResult, trial: Trial, reference: ray.ObjectRef
    ) -> TrialResult:
        """The result after an attempt that has ended; that of a finished trial is written."""
        directory = self.root / trial.directory
        result = replace(before, attempts=before.attempts + 1)
        try:
            status, seconds, peak = ray.get(reference)
        except ray.exceptions.RayError as error:  # a node that died, a worker that was killed
            return replace(result, error=f"{type(error).__name__}: {error}")
        console = (directory / CONSOLE_FILE).read_text(encoding="utf-8", errors="replace")
        log = directory / "log.txt"  # Detectron2 writes the peak of a GPU's memory into it
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        on_gpu = [float(x) for x in re.findall(r"max_mem: (\d+)M", text)]
        peak = max([before.peak_memory_mb, *(on_gpu or [peak])])
        result = replace(result, seconds=before.seconds + seconds, peak_memory_mb=peak)
        if status or last_row(directory)["iteration"] < trial.cfg.SOLVER.MAX_ITER:
            lines = console.splitlines()[-_ERROR_LINES:]
            return replace(result, error="\n".join([f"exit status {status}", *lines]))
        metrics = read_box_metrics(directory, *trial.cfg.DATASETS.TEST[:1])
        result = replace(result, status="done", error="", metrics=metrics)
        write_json(directory / RESULT_FILE, asdict(result))  # a failed one is tried again
        for checkpoint in directory.glob("model_[0-9]*.pth"):
            checkpoint.unlink()
        return result
