"""Means and spreads over the seeds, and which rows they tell apart.

Two rows are compared by Welch's 95 % interval of the difference of their mean AP (Biometrika 1947).
The seeds are its samples: it covers what another seed would have given, not what another set of
test images would. Pairs are judged one by one; nothing corrects for their number.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .grid import Row, Sweep
from .results import TrialResult

# Two-sided 95 % points of Student's t with 1, 2, … 30 degrees of freedom.
_STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Estimate(NamedTuple):
    """A quantity over the seeds that have a finite value."""

    mean: float  # NaN without any
    std: float  # sample standard deviation (n - 1); NaN with fewer than two
    n: int

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {self.std:.1f}" if self.n > 1 else "")


def estimate(values: Iterable[float]) -> Estimate:
    finite = [value for value in values if math.isfinite(value)]
    return Estimate(
        mean=statistics.fmean(finite) if finite else math.nan,
        std=statistics.stdev(finite) if len(finite) > 1 else math.nan,
        n=len(finite),
    )


def number(value: float, sign: str = "") -> str:
    """One decimal, as the paper has it, with a true minus sign; a dash for NaN."""
    return f"{value:{sign}.1f}".replace("-", "−") if math.isfinite(value) else "–"


def welch_margin(first: Estimate, second: Estimate) -> float:
    """Half-width of the 95 % interval of ``first - second``; NaN with fewer than two seeds of one.

    Degrees of freedom are rounded down, and at most 30, which makes the interval a little wider.
    """
    if min(first.n, second.n) < 2:
        return math.nan
    variances = [e.std**2 / e.n for e in (first, second)]
    total = sum(variances)
    if total == 0:
        return 0.0
    a, b = (variance / total for variance in variances)
    degrees = 1 / (a**2 / (first.n - 1) + b**2 / (second.n - 1))
    whole = math.floor(degrees + 1e-9)  # else 2 becomes 1 by rounding
    return _STUDENT_T[min(whole, 30) - 1] * math.sqrt(total)


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

    first: Row
    second: Row
    paper: float  # the paper's difference; NaN where it lacks one of the numbers
    here: float  # ours; NaN where a row has no result
    margin: float  # half-width of its 95 % interval; NaN where a row has fewer than two seeds

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return int(math.copysign(1, self.here)) if abs(self.here) > self.margin else 0

    @property
    def verdict(self) -> str:
        """Whether the first row is ahead, and whether it is so in the paper."""
        if math.isnan(self.here):
            return "no result"
        if math.isnan(self.margin):
            return "too few seeds"
        order = {1: "ahead", -1: "behind", 0: "not told apart"}[self.sign]
        agreement = self.paper * self.sign  # 0 or NaN where one of the two has no order
        if agreement > 0:
            return f"{order}, as in the paper"
        return f"{order}, unlike the paper" if agreement < 0 else order


def compare(first: RowSummary, second: RowSummary) -> Comparison:
    return Comparison(
        first=first.row,
        second=second.row,
        paper=round(first.paper_ap - second.paper_ap, 6),  # 34.0 - 33.7, and ties
        here=first.ap.mean - second.ap.mean,
        margin=welch_margin(first.ap, second.ap),
    )


def summarize(sweep: Sweep, results: Sequence[TrialResult]) -> list[RowSummary]:
    """The sweep's rows in their order."""
    tests = [x for x in results if x.stage == "test"]
    return [RowSummary(row, [x for x in tests if x.row == row.name]) for row in sweep.rows]


def tuned_ap(results: Sequence[TrialResult], row: Row, value: Any) -> Estimate:
    """AP of a row's tuning trials with one value."""
    tried = [x for x in results if (x.stage, x.row, x.tuned) == ("tune", row.name, value)]
    return estimate(trial.metrics.get("AP", math.nan) for trial in tried)
