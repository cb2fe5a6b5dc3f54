"""What a trial left behind, and the files that collect it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TrialResult"]


@dataclass(frozen=True)
class TrialResult:
    """One training of one row with one seed.

    Attributes:
        row: name of the row.
        seed: its SEED.
        stage: "tune" or "test"; only the latter is the table's.
        tuned: the tuned key's value, None where nothing is tuned.
        status: "done" or "failed".
        metrics: COCO's numbers in percent: AP, AP50, AP75, APs, APm, APl, AP-<class>.
        seconds: wall time of the training and its evaluation, over all attempts.
        peak_memory_mb: peak of resident memory, or of GPU memory where it ran on one, MiB.
        config_hash: of the full config, see :func:`config_hash`.
        git_commit: of the code, with "+" where the checkout had changes; "" outside a checkout.
        attempts: how many times it was started.
        directory: of its checkpoints, metrics.json and log.txt, relative to the sweep's.
        error: the last lines of its log, where it failed.
    """

    row: str
    seed: int
    stage: str
    tuned: Any
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    config_hash: str = ""
    git_commit: str = ""
    attempts: int = 1
    directory: str = ""
    error: str = ""
