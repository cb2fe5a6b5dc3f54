"""Means over the seeds, Welch's interval, and the verdicts on pairs of rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.sweep.grid import Row, Sweep
from focal_retina.sweep.results import TrialResult, compare, estimate, summarize, welch_margin

APS = st.lists(st.floats(0, 100), min_size=2, max_size=6)


def sweep_of(*paper_aps):
    rows = [Row(f"row {i}", {}, {"AP": ap} if ap else {}) for i, ap in enumerate(paper_aps)]
    return Sweep("table", "A table", "minival", "row 0", rows)


def trials(*aps_by_row):
    """A finished trial for each row's APs."""
    return [
        TrialResult(f"row {i}", seed, "test", None, "done", {"AP": ap})
        for i, aps in enumerate(aps_by_row)
        for seed, ap in enumerate(aps)
    ]


def test_estimates_leave_out_what_is_not_finite():
    assert estimate([1.0, math.nan, 3.0, math.inf]) == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert estimate([31.1]).mean == 31.1 and math.isnan(estimate([31.1]).std)
    assert math.isnan(estimate([math.nan]).mean) and estimate([math.nan]).n == 0


def test_intervals_of_known_degrees_of_freedom():
    """Equal n and std give 2n - 2; one constant row gives the other row's n - 1."""
    found = welch_margin(estimate([49, 50, 51]), estimate([45, 46, 47]))
    assert found == pytest.approx(2.776445 * math.sqrt(2 / 3))
    for scale in (0.1, 0.3, 1, 7):  # exactly 2, however it is rounded
        found = welch_margin(estimate([0, 0, 0]), estimate([-scale, 0, scale]))
        assert found == pytest.approx(4.302653 * scale / math.sqrt(3))


@given(APS, APS)
def test_comparison_is_antisymmetric(first, second):
    one, other = summarize(sweep_of(None, None), trials(first, second))
    there, back = compare(one, other), compare(other, one)
    assert there.here == -back.here
    assert back.verdict == {"ahead": "behind", "behind": "ahead"}.get(there.verdict, there.verdict)
    assert there.margin == pytest.approx(back.margin)


def test_verdicts_follow_the_rule():
    sweep = sweep_of(33.7, 34.0, 34.0, 30.0, 34.0, 33.7, None, 34.0, 34.0)
    up, down, unclear = [51.9, 52, 52.1], [47.9, 48, 48.1], [45.0, 51, 55]
    results = trials([49.9, 50, 50.1], up, down, down, unclear, up, up, [], [99])
    reference, *others = summarize(sweep, results)
    assert [compare(row, reference).verdict for row in others] == [
        "ahead, as in the paper",
        "behind, unlike the paper",
        "behind, as in the paper",
        "not told apart",
        "ahead",  # a tie in the paper
        "ahead",  # no number in the paper
        "no result",
        "too few seeds",
    ]
    assert compare(others[0], reference).paper == 0.3  # without the noise of 34.0 - 33.7


def test_summaries_leave_out_tuning_and_keep_failures_apart():
    tune = TrialResult("row 0", 1001, "tune", 0.1, "done", {"AP": 99.0})
    failed = TrialResult("row 0", 2, "test", None, "failed", error="out of memory")
    done = [
        TrialResult("row 0", 1, "test", 0.1, "done", {"AP": 50.0}),
        TrialResult("row 0", 0, "test", 0.1, "done", {"AP": math.nan}),
    ]
    (summary,) = summarize(sweep_of(31.0), [tune, failed, *done])
    assert (summary.trials, summary.done, summary.first_done) == ([failed, *done], done, done[1])
    assert summary.ap.mean == 50 and summary.ap.n == 1
