"""What trials left behind, over the seeds, and which rows the seeds tell apart, by Welch's 95 %
interval of the difference of their mean AP (Biometrika 1947). It covers what another seed would
have given, not what another set of test images would."""

import contextlib
import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from ..files import atomic_write, write_json
from .grid import Row, Sweep

RESULT_FILE = "result.json"
LOSS_FOLDER = "loss_distribution"  # in a trial's directory: figure 4 of its model


@dataclass(frozen=True)
class TrialResult:
    """One training of one row with one seed; the first fields are :class:`~.grid.Trial`'s."""

    row: str
    seed: int
    stage: str
    tuned: Any
    status: str  # "done" or "failed"
    metrics: dict[str, float] = field(default_factory=dict)  # %: AP, AP50, …, where defined
    seconds: float = 0.0  # wall time of training and evaluation, over all attempts
    peak_memory_mb: float = 0.0  # MiB, resident; GPU memory where it ran on one
    config_hash: str = ""
    git_commit: str = ""  # with "+" where the checkout had changes; "" outside a checkout
    attempts: int = 1  # how many times it was started
    directory: str = ""  # of metrics.json and log.txt, relative to the sweep's
    error: str = ""  # the last lines of its log, where it failed


def read_result(path: Path) -> TrialResult:
    """Read :data:`RESULT_FILE`; a ValueError if it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Earlier versions wrote null for a metric that is not defined.
        metrics = {k: v for k, v in content["metrics"].items() if v is not None}
        return TrialResult(**{**content, "metrics": metrics})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the result of a trial ({error}): remove it") from error


def write_results(folder: Path, results: Sequence[TrialResult], about: Mapping[str, Any]) -> None:
    """Write ``about`` and every trial to results.json, and a line a trial to results.csv."""
    trials = [asdict(x) for x in results]
    write_json(folder / "results.json", {**about, "trials": trials})
    rows = [trial | trial.pop("metrics") for trial in trials]
    with atomic_write(folder / "results.csv", "w") as file:
        writer = csv.DictWriter(file, dict.fromkeys(column for row in rows for column in row))
        writer.writeheader()
        writer.writerows(rows)


def last_row(directory: Path) -> dict[str, float]:
    """The last complete line of a trial's metrics.json, iteration 0 before there is one."""
    path = directory / "metrics.json"
    for line in reversed(path.read_text(errors="replace").splitlines() if path.exists() else []):
        with contextlib.suppress(ValueError):  # it is being written
            return json.loads(line)
    return {"iteration": 0}


def read_box_metrics(directory: Path, dataset: str = "") -> dict[str, float]:
    """COCO's finite box numbers in the last row of metrics.json, in percent, by their names there,
    before which Detectron2 puts the data set's where several were evaluated."""
    row = {key.removeprefix(f"{dataset}/"): x for key, x in last_row(directory).items()}
    return {key[5:]: x for key, x in row.items() if key[:5] == "bbox/" and math.isfinite(x)}


class Estimate(NamedTuple):
    """A quantity over the seeds that have a finite value."""

    mean: float  # NaN without any
    std: float  # sample standard deviation (n - 1); NaN with fewer than two
    n: int

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {self.std:.1f}" if self.n > 1 else "")


def estimate(values: Iterable[float]) -> Estimate:
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(finite) if finite else math.nan
    return Estimate(mean, statistics.stdev(finite) if len(finite) > 1 else math.nan, len(finite))


def number(value: float, sign: str = "") -> str:
    """One decimal, as the paper has it, with a true minus sign; a dash for NaN."""
    return f"{value:{sign}.1f}".replace("-", "−") if math.isfinite(value) else "–"


def welch_margin(first: Estimate, second: Estimate) -> float:
    """Half-width of the 95 % interval of ``first - second``; NaN with fewer than two seeds."""
    if min(first.n, second.n) < 2:
        return math.nan
    a, b = (e.std**2 / e.n for e in (first, second))
    total = a + b
    if total == 0:
        return 0.0
    degrees = 1 / ((a / total) ** 2 / (first.n - 1) + (b / total) ** 2 / (second.n - 1))
    return float(stats.t.ppf(0.975, degrees)) * math.sqrt(total)


@dataclass(frozen=True)
class RowSummary:
    """One row of the table with its trials of stage "test"."""

    row: Row
    trials: list[TrialResult]

    @property
    def done(self) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.status == "done"]

    def metric(self, name: str) -> Estimate:
        """One of COCO's numbers, such as "AP75", in percent."""
        return estimate(trial.metrics.get(name, math.nan) for trial in self.done)

    @property
    def ap(self) -> Estimate:
        return self.metric("AP")

    @property
    def paper_ap(self) -> float:
        return self.row.paper.get("AP", math.nan)

    @property
    def first_done(self) -> TrialResult | None:
        """The finished trial of the lowest seed: its model stands for the row's."""
        return min(self.done, key=lambda trial: trial.seed, default=None)


class Comparison(NamedTuple):
    """One row against another, whose AP is subtracted."""

    paper: float  # the paper's difference; NaN where it lacks one of the numbers
    here: float  # ours; NaN where a row has no result
    margin: float  # half-width of its 95 % interval; NaN where a row has fewer than two seeds

    @property
    def verdict(self) -> str:
        """Whether the first row is ahead, and whether it is so in the paper."""
        if math.isnan(self.here):
            return "no result"
        if math.isnan(self.margin):
            return "too few seeds"
        if abs(self.here) <= self.margin:  # the interval has both signs
            return "not told apart"
        order = "ahead" if self.here > 0 else "behind"
        agreement = self.paper * self.here  # 0 or NaN where the paper has no order
        if agreement > 0:
            return f"{order}, as in the paper"
        return f"{order}, unlike the paper" if agreement < 0 else order


def compare(first: RowSummary, second: RowSummary) -> Comparison:
    paper = round(first.paper_ap - second.paper_ap, 6)  # 34.0 - 33.7, and ties
    return Comparison(paper, first.ap.mean - second.ap.mean, welch_margin(first.ap, second.ap))


def summarize(sweep: Sweep, results: Sequence[TrialResult]) -> list[RowSummary]:
    """The sweep's rows in their order."""
    tests = [x for x in results if x.stage == "test"]
    return [RowSummary(row, [x for x in tests if x.row == row.name]) for row in sweep.rows]


def tuned_ap(results: Sequence[TrialResult], row: Row, value: Any) -> Estimate:
    """AP of a row's tuning trials with one value."""
    tried = [x for x in results if (x.stage, x.row, x.tuned) == ("tune", row.name, value)]
    return estimate(trial.metrics.get("AP", math.nan) for trial in tried)
