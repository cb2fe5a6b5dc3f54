"""Means over the seeds, Welch's interval, and the verdicts on the paper's orders."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.analysis.training_metrics import Series
from focal_retina.sweep import statistics
from focal_retina.sweep.grid import Row, Sweep, Tuning
from focal_retina.sweep.results import TrialResult
from focal_retina.sweep.statistics import (
    Comparison,
    Difference,
    Verdict,
    compare_all_pairs,
    compare_with_reference,
    difference,
    estimate,
    mean_curve,
    summarize,
    tuning_estimates,
)

APS = st.lists(st.floats(0, 100), min_size=2, max_size=6)


def sweep_of(*paper_aps):
    rows = [Row(f"row {i}", {}, {} if ap is None else {"AP": ap}) for i, ap in enumerate(paper_aps)]
    return Sweep("table", "A table", "minival", "row 0", rows)


def trials(*aps_by_row):
    """A finished trial for each row's APs."""
    return [
        TrialResult(f"row {i}", seed, "test", None, "done", {"AP": ap})
        for i, aps in enumerate(aps_by_row)
        for seed, ap in enumerate(aps)
    ]


def verdicts(sweep, results):
    return [c.verdict for c in compare_with_reference(sweep, summarize(sweep, results))]


@settings(deadline=None, max_examples=30)
@given(APS)
def test_mean_and_sample_standard_deviation(values):
    found = estimate([*values, math.nan, math.inf])
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_one_value_has_no_deviation_and_none_no_mean():
    assert estimate([31.1]).mean == 31.1 and math.isnan(estimate([31.1]).std)
    assert math.isnan(estimate([math.nan]).mean) and estimate([math.nan]).n == 0


def test_table_of_students_t_against_its_integral():
    """P(|T| <= t) = .95, by integrating the density from -t to t."""
    for degrees, quantile in enumerate(statistics._STUDENT_T, start=1):
        t = np.linspace(-quantile, quantile, 20001)
        log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
        density = np.exp(log_norm - (degrees + 1) / 2 * np.log1p(t**2 / degrees))
        heights = density / math.sqrt(degrees * math.pi)
        area = np.sum((heights[1:] + heights[:-1]) / 2 * np.diff(t))
        assert area == pytest.approx(0.95, abs=6e-5)


def test_interval_of_equal_spreads_is_students():
    """With equal n and std Welch's degrees of freedom are 2n - 2; three seeds: t = 2.776."""
    found = difference(estimate([49, 50, 51]), estimate([45, 46, 47]))
    assert found.value == pytest.approx(4)
    assert found.margin == pytest.approx(2.776 * math.sqrt(2 / 3))


def test_interval_of_one_constant_row_has_the_other_rows_degrees():
    """df = n - 1 = 2 exactly, t = 4.303, however it is rounded."""
    for scale in (0.1, 0.3, 1, 7):
        found = difference(estimate([0, 0, 0]), estimate([-scale, 0, scale]))
        assert found.margin == pytest.approx(4.303 * scale / math.sqrt(3))


@settings(deadline=None, max_examples=30)
@given(APS, APS)
def test_interval_is_antisymmetric(first, second):
    one = difference(estimate(first), estimate(second))
    other = difference(estimate(second), estimate(first))
    assert one.value == -other.value and one.sign == -other.sign
    assert one.margin == pytest.approx(other.margin)


def test_interval_covers_the_truth_at_its_rate():
    """Of 2000 pairs of three seeds with equal means, about one in twenty is told apart."""
    generator = np.random.default_rng(0)
    pairs = generator.normal(size=(2000, 2, 3)) * [[[1.0], [3.0]]]
    told_apart = [difference(estimate(a), estimate(b)).sign != 0 for a, b in pairs.tolist()]
    assert 0.01 < np.mean(told_apart) < 0.06


def test_verdicts_follow_the_rule():
    sweep = sweep_of(31.0, 34.0, 34.0, 34.0, 31.0, None, 34.0)
    up, down, unclear = [51.9, 52, 52.1], [47.9, 48, 48.1], [45.0, 51, 55]
    results = trials([49.9, 50, 50.1], up, down, unclear, up, up, [])
    assert verdicts(sweep, results) == [
        Verdict.REPRODUCED,
        Verdict.NOT_REPRODUCED,
        Verdict.UNDECIDED,
        Verdict.NO_ORDER,  # a tie in the paper
        Verdict.NO_ORDER,  # no number in the paper
        Verdict.NO_RESULT,
    ]


def test_one_seed_decides_nothing():
    assert verdicts(sweep_of(0.0, 34.0), trials([10.0], [50.0])) == [Verdict.UNDECIDED]
    assert verdicts(sweep_of(0.0, 34.0), trials([10.0, 10.1], [50.0])) == [Verdict.UNDECIDED]


def test_a_lower_row_of_the_paper_is_reproduced_below():
    comparison = Comparison(Row("a", {}), Row("b", {}), -2.9, Difference(-4.1, 0.6))
    assert comparison.verdict is Verdict.REPRODUCED
    assert replace(comparison, here=Difference(4.1, 0.6)).verdict is Verdict.NOT_REPRODUCED


def test_pairs_have_the_papers_better_row_first():
    sweep = sweep_of(31.0, 34.0, 32.0)
    pairs = compare_all_pairs(summarize(sweep, trials([1, 2], [5, 6], [3, 5])))
    names = [(p.first.name, p.second.name) for p in pairs]
    assert names == [("row 1", "row 0"), ("row 2", "row 0"), ("row 1", "row 2")]
    assert [p.paper for p in pairs] == [3.0, 1.0, 2.0]
    assert [p.here.value for p in pairs] == [4.0, 2.5, 1.5]


def test_paper_difference_of_decimals_is_no_noise():
    (comparison,) = compare_with_reference(
        sweep := sweep_of(33.7, 34.0), summarize(sweep, trials([1], [1]))
    )
    assert comparison.paper == 0.3


def test_summaries_leave_out_tuning_and_keep_failures_apart():
    sweep = sweep_of(31.0)
    tune = TrialResult("row 0", 1001, "tune", 0.1, "done", {"AP": 99.0})
    failed = TrialResult("row 0", 2, "test", None, "failed", error="out of memory")
    done = [
        TrialResult("row 0", 0, "test", 0.1, "done", {"AP": 50.0}, 100, 900),
        TrialResult("row 0", 1, "test", 0.1, "done", {"AP": math.nan}, 140, 1100),
    ]
    (summary,) = summarize(sweep, [tune, failed, *done])
    assert summary.done == done and summary.failed == [failed]
    assert summary.ap.mean == 50 and summary.ap.n == 1
    assert summary.without_ap == [done[1]]
    assert (summary.seconds.mean, summary.peak_memory_mb) == (120, 1100)
    assert summary.tuned == [0.1]


def test_tuning_estimates_are_of_a_row_and_value():
    sweep = replace(sweep_of(31.0, 32.0), tuning=Tuning("SOLVER.BASE_LR", [0.1, 0.2], seeds=2))
    aps = {("row 0", 0.1): [10, 12], ("row 0", 0.2): [20], ("row 1", 0.2): []}
    results = [
        TrialResult(row, seed, "tune", value, "done", {"AP": ap})
        for (row, value), values in aps.items()
        for seed, ap in enumerate(values)
    ]
    found = tuning_estimates(sweep, [*results, *trials([99], [99])])
    assert [e.mean for e in found["row 0"]] == [11, 20]
    assert [e.n for e in found["row 1"]] == [0, 0]


def test_curve_is_the_mean_of_the_seeds_that_got_as_far():
    curve = mean_curve([Series([0, 20, 40], [4.0, 2.0, 1.0]), Series([0, 20], [2.0, 4.0])])
    assert curve == Series([0, 20, 40], [3.0, 3.0, 1.0])
    assert mean_curve([]) == Series([], [])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.floats(0.1, 10), st.floats(0, 0.02))
def test_smoothing_leaves_a_line_as_it_is_but_for_its_ends(length, start, slope):
    iterations = list(range(length))
    values = [start + slope * i for i in iterations]
    curve = mean_curve([Series(iterations, values)])
    half = length // 40
    assert curve.iterations == iterations
    middle = slice(half, length - half)
    np.testing.assert_allclose(curve.values[middle], values[middle])
    assert min(values) - 1e-9 <= min(curve.values) and max(curve.values) <= max(values) + 1e-9
