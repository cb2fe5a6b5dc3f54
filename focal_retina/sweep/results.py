"""What a trial left behind, and the files that collect it."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .process import write_atomically

RESULT_FILE = "result.json"


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
        config_hash: see :func:`~focal_retina.sweep.plan.config_hash`.
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


def write_result(path: Path, result: TrialResult) -> None:
    """Write one result as json; a metric that is not a number becomes null."""
    write_atomically(path, json.dumps(_as_json(result), indent=1, ensure_ascii=False) + "\n")


def read_result(path: Path) -> TrialResult:
    """Read what :func:`write_result` wrote.

    Raises:
        ValueError: the file is not a result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = content.pop("metrics")
        numbers = {k: math.nan if v is None else float(v) for k, v in metrics.items()}
        return TrialResult(metrics=numbers, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the result of a trial ({error}): remove it") from error


def write_results(
    directory: Path, results: Sequence[TrialResult], about: Mapping[str, Any]
) -> None:
    """Write results.json (``about`` and every trial) and results.csv (a line a trial, a column a
    metric)."""
    content = {**about, "trials": [_as_json(x) for x in results]}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(directory / "results.json", text + "\n")

    # COCO's metrics in their usual order, then the classes in the data set's.
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    columns = [f.name for f in fields(TrialResult) if f.name != "metrics"]
    temporary = directory / ".results.csv"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *metrics])
        writer.writeheader()
        for result in results:
            row = asdict(result)
            writer.writerow({**row.pop("metrics"), **row})
    os.replace(temporary, directory / "results.csv")


def _as_json(result: TrialResult) -> dict[str, Any]:
    content = asdict(result)
    content["metrics"] = {k: v if math.isfinite(v) else None for k, v in content["metrics"].items()}
    return content
