"""What a trial left behind, and the files that collect it."""

import contextlib
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..figures.loss_cdf import MeasuredCdfs, read_loss_cdf
from ..files import atomic_write

RESULT_FILE = "result.json"
LOSS_FOLDER = "loss_distribution"  # in a trial's directory: figure 4 of its model


@dataclass(frozen=True)
class TrialResult:
    """One training of one row with one seed."""

    row: str  # its name
    seed: int  # SEED
    stage: str  # "tune" or "test"; only the latter is the table's
    tuned: Any  # the tuned key's value, None where nothing is tuned
    status: str  # "done" or "failed"
    metrics: dict[str, float] = field(default_factory=dict)  # %: AP, AP50, …, APl, AP-<class>
    seconds: float = 0.0  # wall time of training and evaluation, over all attempts
    peak_memory_mb: float = 0.0  # MiB, resident; GPU memory where it ran on one
    config_hash: str = ""  # see focal_retina.sweep.plan.config_hash
    git_commit: str = ""  # with "+" where the checkout had changes; "" outside a checkout
    attempts: int = 1  # how many times it was started
    directory: str = ""  # of metrics.json and log.txt, relative to the sweep's
    error: str = ""  # the last lines of its log, where it failed

    def to_json(self) -> dict[str, Any]:
        """A metric that is not a number becomes null."""
        metrics = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {**asdict(self), "metrics": metrics}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_result(path: Path) -> TrialResult:
    """Read :data:`RESULT_FILE`.

    Raises:
        ValueError: the file is not a result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {k: math.nan if v is None else v for k, v in content["metrics"].items()}
        return TrialResult(**{**content, "metrics": metrics})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the result of a trial ({error}): remove it") from error


def write_results(
    directory: Path, results: Sequence[TrialResult], about: Mapping[str, Any]
) -> None:
    """Write ``about`` and every trial to results.json, and a line a trial to results.csv."""
    write_json(directory / "results.json", {**about, "trials": [x.to_json() for x in results]})

    # COCO's metrics in their usual order, then the classes in the data set's.
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    columns = [f.name for f in fields(TrialResult) if f.name != "metrics"]
    with atomic_write(directory / "results.csv", "w") as file:
        writer = csv.DictWriter(file, [*columns, *metrics])
        writer.writeheader()
        for result in results:
            row = asdict(result)
            writer.writerow({**row.pop("metrics"), **row})


def last_row(directory: Path) -> dict[str, float]:
    """The last complete line of a trial's metrics.json, {} before there is one."""
    path = directory / "metrics.json"
    for line in reversed(path.read_text(errors="replace").splitlines() if path.exists() else []):
        with contextlib.suppress(ValueError):  # it is being written
            return json.loads(line)
    return {}


def read_box_metrics(directory: Path, dataset: str = "") -> dict[str, float]:
    """COCO's box numbers in the last row of metrics.json, in percent, by their names there.

    Detectron2 puts the data set's name before them where several were evaluated. It writes NaN for
    a model that detects nothing at all; its AP is 0.
    """
    metrics = {
        key.removeprefix(prefix): value
        for key, value in last_row(directory).items()
        for prefix in ("bbox/", f"{dataset}/bbox/")
        if key.startswith(prefix)
    }
    averages = ("AP", "AP50", "AP75")
    if all(math.isnan(metrics.get(name, 0.0)) for name in averages):
        metrics.update(dict.fromkeys(averages, 0.0))
    return metrics


def read_losses(trial_directory: Path) -> MeasuredCdfs | None:
    """None where the loss was not measured, or where measuring was cut off."""
    try:
        return read_loss_cdf(trial_directory / LOSS_FOLDER)
    except (OSError, ValueError):
        return None
