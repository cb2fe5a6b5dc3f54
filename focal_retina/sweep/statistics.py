"""Means and spreads over the seeds, and which of the paper's orders they show.

Two rows are compared by Welch's 95 % interval of the difference of their mean AP (B. L. Welch, "The
generalization of 'Student's' problem when several different population variances are involved",
Biometrika 1947). The seeds are its samples: it covers what another seed would have given, not what
another set of test images would. Pairs are judged one by one; nothing corrects for their number.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any

import numpy as np

from ..analysis.training_metrics import Series
from .grid import Row, Sweep
from .results import TrialResult

# Two-sided 95 % points of Student's t with 1, 2, … 30 degrees of freedom.
_STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Estimate:
    """A quantity over the seeds.

    Attributes:
        mean: of the seeds that have a finite value; NaN where none has.
        std: sample standard deviation (n - 1); NaN with fewer than two.
        n: how many there are.
    """

    mean: float
    std: float
    n: int


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and sample standard deviation of the finite values.

    AP is NaN where an evaluation gave none: who shows the estimate has to say so.
    """
    finite = [value for value in values if math.isfinite(value)]
    return Estimate(
        mean=statistics.fmean(finite) if finite else math.nan,
        std=statistics.stdev(finite) if len(finite) > 1 else math.nan,
        n=len(finite),
    )


@dataclass(frozen=True)
class Difference:
    """A difference of two means, and the half-width of its 95 % interval.

    Attributes:
        value: NaN where a mean is missing.
        margin: NaN where a row has fewer than two seeds.
    """

    value: float
    margin: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        if abs(self.value) > self.margin:
            return 1 if self.value > 0 else -1
        return 0


def difference(first: Estimate, second: Estimate) -> Difference:
    """Welch's interval of ``first - second``.

    The degrees of freedom are rounded down to a whole number, and those above 30 count as 30: both
    make the interval a little wider.
    """
    value = first.mean - second.mean
    if min(first.n, second.n) < 2:
        return Difference(value, math.nan)
    variances = [e.std**2 / e.n for e in (first, second)]
    total = sum(variances)
    if total == 0:
        return Difference(value, 0.0)
    shares = [variance / total for variance in variances]
    spread = sum(s**2 / (e.n - 1) for s, e in zip(shares, (first, second), strict=True))
    degrees = math.floor(1 / spread + 1e-9)  # else 2 becomes 1 by rounding
    return Difference(value, _STUDENT_T[min(degrees, 30) - 1] * math.sqrt(total))


class Verdict(Enum):
    """What the seeds say about the paper's order of two rows; see :attr:`Comparison.verdict`."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided"
    NO_ORDER = "no order in the paper"
    NO_RESULT = "no result"


@dataclass(frozen=True)
class Comparison:
    """Two rows, the AP of the second subtracted from that of the first.

    Attributes:
        first: a row.
        second: another.
        paper: the paper's difference; None where it lacks one of the numbers.
        here: ours.
    """

    first: Row
    second: Row
    paper: float | None
    here: Difference

    @property
    def verdict(self) -> Verdict:
        """Reproduced: our whole interval lies on the paper's side of zero. Not reproduced: it lies
        on the other side. Undecided: it contains zero, or a row has fewer than two seeds."""
        if math.isnan(self.here.value):
            return Verdict.NO_RESULT
        if not self.paper:
            return Verdict.NO_ORDER
        if self.here.sign == 0:
            return Verdict.UNDECIDED
        agrees = (self.paper > 0) == (self.here.sign > 0)
        return Verdict.REPRODUCED if agrees else Verdict.NOT_REPRODUCED


@dataclass(frozen=True)
class RowSummary:
    """One row of the table.

    Attributes:
        row: what was trained.
        done: its finished trials.
        failed: those that were given up.
    """

    row: Row
    done: list[TrialResult]
    failed: list[TrialResult]

    def metric(self, name: str) -> Estimate:
        """One of COCO's numbers, such as "AP75", in percent."""
        return estimate(trial.metrics.get(name, math.nan) for trial in self.done)

    @property
    def ap(self) -> Estimate:
        return self.metric("AP")

    @property
    def seconds(self) -> Estimate:
        return estimate(trial.seconds for trial in self.done)

    @property
    def peak_memory_mb(self) -> float:
        """The largest of the trials; NaN without any."""
        return max((trial.peak_memory_mb for trial in self.done), default=math.nan)

    @property
    def without_ap(self) -> list[TrialResult]:
        """Finished trials whose AP is missing or NaN."""
        return [t for t in self.done if not math.isfinite(t.metrics.get("AP", math.nan))]

    @property
    def tuned(self) -> list[Any]:
        """The tuned key's values that the trials were made with: one, unless something is amiss."""
        values: list[Any] = []
        for trial in (*self.done, *self.failed):
            if trial.tuned is not None and trial.tuned not in values:
                values.append(trial.tuned)
        return values


def summarize(sweep: Sweep, results: Sequence[TrialResult]) -> list[RowSummary]:
    """The sweep's rows in their order, each with its trials of stage "test"."""
    tests = [result for result in results if result.stage == "test"]
    return [
        RowSummary(
            row,
            done=[t for t in tests if t.row == row.name and t.status == "done"],
            failed=[t for t in tests if t.row == row.name and t.status != "done"],
        )
        for row in sweep.rows
    ]


def compare_with_reference(sweep: Sweep, summaries: Sequence[RowSummary]) -> list[Comparison]:
    """Every other row, compared with the reference."""
    (reference,) = (s for s in summaries if s.row.name == sweep.reference)
    return [_compare(s, reference) for s in summaries if s is not reference]


def compare_all_pairs(summaries: Sequence[RowSummary]) -> list[Comparison]:
    """Every pair of rows, the one with the paper's higher AP first."""
    pairs = [_compare(first, second) for first, second in combinations(summaries, 2)]
    return [
        Comparison(p.second, p.first, -p.paper, Difference(-p.here.value, p.here.margin))
        if p.paper is not None and p.paper < 0
        else p
        for p in pairs
    ]


def _compare(first: RowSummary, second: RowSummary) -> Comparison:
    numbers = [summary.row.paper.get("AP") for summary in (first, second)]
    paper = None
    if numbers[0] is not None and numbers[1] is not None:
        paper = round(numbers[0] - numbers[1], 6)  # 34.0 - 33.7, and ties
    return Comparison(first.row, second.row, paper, difference(first.ap, second.ap))


def tuning_estimates(sweep: Sweep, results: Sequence[TrialResult]) -> dict[str, list[Estimate]]:
    """AP while tuning: name of a row -> an estimate for each of ``sweep.tuning.values``."""
    if sweep.tuning is None:
        return {}
    return {
        row.name: [
            estimate(
                trial.metrics.get("AP", math.nan)
                for trial in results
                if (trial.stage, trial.row, trial.tuned) == ("tune", row.name, value)
            )
            for value in sweep.tuning.values
        ]
        for row in sweep.rows
    }


def mean_curve(curves: Sequence[Series]) -> Series:
    """Mean over the seeds that got as far, then a centred moving average over a twentieth.

    At the ends the average is over what there is of its window.
    """
    values: dict[int, list[float]] = {}
    for curve in curves:
        for iteration, value in zip(*curve, strict=True):
            values.setdefault(iteration, []).append(value)
    iterations = sorted(values)
    if not iterations:
        return Series([], [])
    means = np.array([statistics.fmean(values[iteration]) for iteration in iterations])
    half = len(means) // 40
    window = np.ones(2 * half + 1)
    padded = np.pad(means, half)
    counts = np.convolve(np.pad(np.ones_like(means), half), window, mode="valid")
    return Series(iterations, (np.convolve(padded, window, mode="valid") / counts).tolist())
