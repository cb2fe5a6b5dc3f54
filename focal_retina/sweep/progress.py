"""One line that says how far a sweep is."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .plan import Trial
from .results import TrialResult
from .runner import last_row

_SHOWN = 3  # running trials
_LOG_INTERVAL = 60.0  # seconds between lines where the output is no terminal


class Progress:
    """Iterations of all trials as a tqdm bar, behind it what is running.

    Call it with the results so far; what is running is read from the trials' metrics.json.
    """

    def __init__(self, *, trials: Sequence[Trial], root: Path, description: str):
        """
        Args:
            trials: all of them, the finished ones too.
            root: what their directories are relative to.
            description: before the bar.
        """
        self.trials = trials
        self.root = root
        self.description = description
        self.start = time.time()
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, results: Sequence[TrialResult]) -> None:
        finished = {result.directory for result in results}
        rows = {
            t.directory: last_row(self.root / t.directory)
            for t in self.trials
            if t.directory not in finished
        }
        iterations = {
            t.directory: t.max_iter
            if t.directory in finished
            else min(int(rows[t.directory].get("iteration", 0)), t.max_iter)
            for t in self.trials
        }
        if self.bar is None:
            total = sum(t.max_iter for t in self.trials)
            # What an earlier run of the sweep did is no part of this one's speed.
            self.bar = tqdm(
                total=total,
                initial=sum(iterations.values()),
                unit="it",
                dynamic_ncols=True,
                mininterval=1.0 if sys.stderr.isatty() else _LOG_INTERVAL,
            )
        running = [
            f"{t.label}: {iterations[t.directory]}/{t.max_iter}{_loss(rows[t.directory])}"
            for t in self.trials
            if t.directory not in finished and self._is_running(t)
        ]
        more = [f"and {len(running) - _SHOWN} more"] if len(running) > _SHOWN else []
        self.bar.set_description_str(
            f"{self.description} {len(finished)}/{len(self.trials)} trials", refresh=False
        )
        self.bar.set_postfix_str(" | ".join([*running[:_SHOWN], *more]), refresh=False)
        self.bar.update(sum(iterations.values()) - self.bar.n)

    def _is_running(self, trial: Trial) -> bool:
        """Whether it has written metrics since the start: an earlier run may have left some."""
        metrics = self.root / trial.directory / "metrics.json"
        return metrics.is_file() and metrics.stat().st_mtime >= self.start


def _loss(row: dict[str, float]) -> str:
    return f" loss {row['total_loss']:.3g}" if "total_loss" in row else ""
