"""Numbers and comparisons of a sweep in words, for the report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.loss_report import MeasuredCdfs
from .grid import Sweep, Tuning
from .results import TrialResult
from .statistics import Comparison, Difference, Estimate, RowSummary, Verdict

NOTHING = "–"

RULE = (
    "Two rows are told apart where the 95 % interval of the difference of their mean AP (Welch’s, "
    "over the seeds) lies wholly on one side of zero; a row with fewer than two seeds is told from "
    "none. An order of the paper counts as reproduced where that is the paper’s side, as not "
    "reproduced where it is the other, and else as undecided. The interval covers the choice of "
    "the seed, not that of the test images, and is not corrected for the number of pairs: of "
    "twenty equal pairs, about one would be declared different."
)


def number(value: float) -> str:
    """One decimal, as the paper has it, with a true minus sign."""
    return f"{value:.1f}".replace("-", "−") if math.isfinite(value) else NOTHING


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if math.isfinite(value) else NOTHING


def mean_and_std(value: Estimate) -> str:
    return number(value.mean) + (f" ± {value.std:.1f}" if value.n > 1 else "")


def with_margin(value: Difference) -> str:
    margin = f" ± {value.margin:.1f}" if math.isfinite(value.margin) else ""
    return signed(value.value) + margin


def duration(seconds: float) -> str:
    """Such as "42 s", "4 min 12 s", "1 h 05 min"."""
    if not math.isfinite(seconds):
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def memory(mebibytes: float) -> str:
    """Such as "850 MiB", "1.2 GiB"."""
    if not math.isfinite(mebibytes):
        return NOTHING
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Such as "a, b and c", or "γ 1, α .25; γ 2, α .25" where names hold commas; of many only the
    first."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    if any("," in name for name in names):
        return "; ".join(names)
    return " and ".join([part for part in (", ".join(names[:-1]), *names[-1:]) if part])


def sentence(comparison: Comparison) -> str:
    """Such as "FL γ 2 above CE (paper +2.9, here +4.1 ± 0.6)"; the order is the paper’s if it has
    one, else ours."""
    paper, here = comparison.paper, comparison.here
    first, second = comparison.first.name, comparison.second.name
    if not paper and comparison.verdict is Verdict.NO_RESULT:
        return f"{first} and {second}"
    side = math.copysign(1, paper) if paper else here.sign
    order = {1: "above", -1: "below", 0: "not told apart from"}[int(side)]
    details = []
    if paper is not None:
        details.append(f"paper {signed(paper)}" if paper else "equal in the paper")
    if comparison.verdict is not Verdict.NO_RESULT:
        few = "" if math.isfinite(here.margin) else ", too few seeds"
        details.append(f"here {with_margin(here)}{few}")
    return f"{first} {order} {second} ({', '.join(details)})"


def headline(summaries: Sequence[RowSummary], pairs: Sequence[Comparison]) -> list[str]:
    """The result in at most three sentences: the best row, and how much of the order is shown."""
    measured = [s for s in summaries if s.ap.n]
    if not measured:
        return ["No trial has finished with an AP yet."]
    best = max(measured, key=lambda summary: summary.ap.mean)
    sentences = [
        f"The highest AP here is that of {best.row.name}: {mean_and_std(best.ap)} "
        f"({_count(best.ap.n, 'seed')})" + _paper_best(best, summaries) + "."
    ]
    equals = [
        (p.second if p.first is best.row else p.first).name
        for p in pairs
        if best.row in (p.first, p.second) and math.isfinite(p.here.margin) and not p.here.sign
    ]
    if equals:
        sentences.append(f"These seeds do not tell it apart from {_listed(equals)}.")
    return sentences + _count_orders(pairs)


def _paper_best(best: RowSummary, summaries: Sequence[RowSummary]) -> str:
    numbers = {s.row.name: s.row.paper["AP"] for s in summaries if "AP" in s.row.paper}
    if not numbers:
        return ""
    highest = max(numbers.values())
    names = [name for name, value in numbers.items() if value == highest]
    if best.row.name in names:
        return f", which is the paper’s highest as well ({number(highest)})"
    return f"; in the paper it is {_listed(names)} ({number(highest)})"


def _count_orders(pairs: Sequence[Comparison]) -> list[str]:
    verdicts = [pair.verdict for pair in pairs]
    counts = [
        verdicts.count(verdict)
        for verdict in (Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.UNDECIDED)
    ]
    if not pairs:
        return []
    if not any(math.isfinite(pair.here.margin) for pair in pairs):
        return ["No order of two rows can be told: each row needs at least two finished seeds."]
    if not any(counts):
        measured = [pair.here for pair in pairs if pair.verdict is not Verdict.NO_RESULT]
        apart = sum(here.sign != 0 for here in measured) or "none"
        return [
            "The paper has no numbers for these rows to compare with. Of "
            f"{_count(len(measured), 'pair')} of rows, {apart} can be told apart at these seeds."
        ]
    same, opposite, undecided = (str(count or "none") for count in counts)
    return [
        f"Of {_count(sum(counts), 'pair')} of rows that the paper orders and that have a result "
        f"here, {same} came out in the paper’s order, {opposite} in the opposite one, and "
        f"{undecided} cannot be told at these seeds."
    ]


def remarks(
    sweep: Sweep,
    summaries: Sequence[RowSummary],
    results: Sequence[TrialResult],
    missing_curves: Sequence[str],
) -> list[str]:
    """What a reader of the table has to know: the paper’s words, and every gap in our numbers."""
    found = [
        f"{s.row.name}: the paper says “{s.row.paper_note}”; here {_outcome(s)}."
        for s in summaries
        if s.row.paper_note
    ]
    for summary in summaries:
        without = [str(trial.seed) for trial in summary.without_ap]
        if without:
            found.append(
                f"{summary.row.name}: its evaluation gave no AP with seed {_listed(without)}; "
                "means and intervals are those of the other seeds."
            )
        if summary.failed and summary.done:
            found.append(
                f"{summary.row.name}: {len(summary.failed)} of "
                f"{_count(len(summary.failed) + len(summary.done), 'trial')} failed; means and "
                "intervals are those of the others."
            )
        if len(summary.tuned) > 1:
            found.append(f"{summary.row.name}: trained with different values: {summary.tuned}.")
    found += _remarks_on_ends(sweep, summaries)
    if missing_curves:
        found.append(f"No loss curve could be read of {_listed(missing_curves)}.")
    known = {row.name for row in sweep.rows}
    unknown = sorted({result.row for result in results} - known)
    if unknown:
        found.append(
            f"Left out are results of rows that are not in this sweep: {_listed(unknown)}."
        )
    return found


def _remarks_on_ends(sweep: Sweep, summaries: Sequence[RowSummary]) -> list[str]:
    """Which rows chose the smallest or largest of at least three numbers."""
    if sweep.tuning is None or len(sweep.tuning.values) < 3:
        return []
    numbers = [v for v in sweep.tuning.values if isinstance(v, (int, float))]
    ends = {"smallest": min(numbers), "largest": max(numbers)} if numbers else {}
    rows = {end: [s.row.name for s in summaries if s.tuned == [v]] for end, v in ends.items()}
    return [
        f"{_listed(names)}: the chosen {sweep.tuning.key}, {plain(ends[end])}, is the {end} that "
        "was tried; a better one may lie beyond it."
        for end, names in rows.items()
        if names
    ]


def _outcome(summary: RowSummary) -> str:
    if summary.ap.n:
        return f"its AP is {mean_and_std(summary.ap)}"
    if summary.done:
        return f"{_count(len(summary.done), 'trial')} ended without an AP"
    if summary.failed:
        return f"{_count(len(summary.failed), 'trial')} failed"
    return "no trial has finished yet"


def trial_counts(sweep: Sweep, results: Sequence[TrialResult], num_seeds: int) -> str:
    """Such as "7 rows × 3 seeds: 19 done, 1 failed, 1 unfinished"; then those of the tuning."""
    rows = _count(len(sweep.rows), "row")
    stages = [("test", num_seeds, f"{rows} × {_count(num_seeds, 'seed')}")]
    if (tuning := sweep.tuning) is not None:
        tries = f"{rows} × {_count(len(tuning.values), 'value')} × {_count(tuning.seeds, 'seed')}"
        stages.append(("tune", len(tuning.values) * tuning.seeds, f"tuning {tries}"))
    parts = []
    for stage, per_row, words in stages:
        statuses = [result.status for result in results if result.stage == stage]
        counts = {
            "done": statuses.count("done"),
            "failed": len(statuses) - statuses.count("done"),
            "unfinished": max(0, per_row * len(sweep.rows) - len(statuses)),
        }
        shown = ", ".join(f"{n} {name}" for name, n in counts.items() if n or name == "done")
        parts.append(f"{words}: {shown}")
    return "; ".join(parts)


def commits(results: Sequence[TrialResult]) -> str:
    """The commits that the trials ran with, shortened."""
    found = sorted({result.git_commit for result in results} - {""})
    return _listed([c[:12] + (" with local changes" if c.endswith("+") else "") for c in found])


def failure(trial: TrialResult) -> str:
    """Which trial failed, and the last line it left."""
    tuned = "" if trial.stage == "test" else f", tuning with {plain(trial.tuned)}"
    last = (trial.error.strip().splitlines() or ["nothing in its log"])[-1].strip()
    attempts = _count(trial.attempts, "attempt")
    return f"{trial.row}, seed {trial.seed}{tuned}, after {attempts}: {last}"


def tuned_on(tuning: Tuning) -> str:
    where = f"on {plain(tuning.datasets)}" if tuning.datasets else "on the config’s own test set"
    return (
        f"AP {where} with {_count(tuning.seeds, 'seed')} a value, other seeds than the table’s. "
        "The value in bold was chosen for the row."
    )


def measured_on(losses: Mapping[str, MeasuredCdfs]) -> str:
    """What the table of losses holds, and on how many images and samples it was measured."""
    images, samples, _ = next(iter(losses.values()))
    counts = ", ".join(f"{samples[sign]:,} {sign}" for sign in ("positives", "negatives"))
    return (
        f"Share of the loss that the hardest samples hold, on {_count(images, 'test image')} "
        f"({counts}); for each row the model of its first finished seed."
    )


def plain(value: Any) -> str:
    """A config value for a reader: a float without trailing zeros, a list without brackets."""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(plain, value)) if isinstance(value, (list, tuple)) else str(value)
