"""The tables of a sweep's report: cells as text, the same for both pages."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..analysis.loss_report import MeasuredCdfs
from . import wording
from .grid import Sweep
from .results import TrialResult
from .statistics import Comparison, Estimate, RowSummary, tuning_estimates


class Cell(NamedTuple):
    """One number as it is shown; ``best`` is set in bold."""

    text: str
    best: bool = False


class Columns(NamedTuple):
    """Neighbouring columns under one heading; a single one may have the subheading ""."""

    heading: str
    subheadings: list[str]


class TableRow(NamedTuple):
    """A row of the sweep: ``note`` stands below its name, ``cells`` are those after it."""

    name: str
    note: str
    is_reference: bool
    cells: list[Cell]


class Table(NamedTuple):
    columns: list[Columns]
    rows: list[TableRow]


def results_table(
    sweep: Sweep,
    summaries: Sequence[RowSummary],
    comparisons: Sequence[Comparison],
    num_seeds: int,
) -> Table:
    """The paper's numbers beside ours, and what ours have cost.

    Args:
        sweep: the table.
        summaries: its rows.
        comparisons: those with the reference row.
        num_seeds: how many a row is to have.
    """
    metrics = _metrics(sweep)
    columns = []
    for metric, in_paper in metrics.items():
        subheadings = ["paper", "here"] if in_paper else ["here"]
        columns.append(Columns(metric, subheadings))
        if metric == "AP":
            columns.append(Columns("AP − reference", subheadings))
    if sweep.tuning is not None:
        columns.append(Columns(sweep.tuning.key.rpartition(".")[2], [""]))
    columns += [Columns(heading, [""]) for heading in ("seeds", "time", "peak memory")]

    by_name = {comparison.first.name: comparison for comparison in comparisons}
    best = (
        max((s.row.paper["AP"] for s in summaries if "AP" in s.row.paper), default=math.nan),
        max((s.ap.mean for s in summaries if s.ap.n), default=math.nan),
    )
    rows = []
    for summary in summaries:
        cells = []
        for metric, in_paper in metrics.items():
            paper, here = summary.row.paper.get(metric, math.nan), summary.metric(metric)
            both = [
                Cell(wording.number(paper), metric == "AP" and paper == best[0]),
                Cell(wording.mean_and_std(here), metric == "AP" and here.mean == best[1]),
            ]
            cells += both if in_paper else both[1:]
            if metric == "AP":
                both = _difference_cells(by_name.get(summary.row.name))
                cells += both if in_paper else both[1:]
        if sweep.tuning is not None:
            cells.append(Cell(wording.plain(summary.tuned) or wording.NOTHING))
        cells += _cost_cells(summary, num_seeds)
        note = f"paper: {summary.row.paper_note}" if summary.row.paper_note else ""
        is_reference = summary.row.name == sweep.reference
        rows.append(TableRow(summary.row.name, note, is_reference, cells))
    return Table(columns, rows)


def tuning_table(
    sweep: Sweep, summaries: Sequence[RowSummary], results: Sequence[TrialResult]
) -> Table | None:
    """AP by row and tried value, the chosen ones in bold; None where nothing is tuned."""
    if sweep.tuning is None:
        return None
    estimates = tuning_estimates(sweep, results)
    failed = {(r.row, r.tuned) for r in results if r.stage == "tune" and r.status != "done"}

    def cell(summary: RowSummary, value: object, tried: Estimate) -> Cell:
        gave_up = not tried.n and any((summary.row.name, value) == pair for pair in failed)
        text = "failed" if gave_up else wording.mean_and_std(tried)
        return Cell(text, value in summary.tuned)

    values = sweep.tuning.values
    return Table(
        [Columns(sweep.tuning.key, [wording.plain(value) for value in values])],
        [
            TableRow(
                summary.row.name,
                "",
                summary.row.name == sweep.reference,
                [
                    cell(summary, value, tried)
                    for value, tried in zip(values, estimates[summary.row.name], strict=True)
                ],
            )
            for summary in summaries
        ],
    )


def loss_table(sweep: Sweep, losses: Mapping[str, MeasuredCdfs]) -> Table:
    """How concentrated the loss of each measured row's model is, for every γ that was measured."""
    gammas = list(next(iter(losses.values())).cdfs["positives"])
    subheadings = [f"γ {gamma:g}" for gamma in gammas]
    parts = [("positives", 0.2), ("negatives", 0.01)]

    def cell(measured: MeasuredCdfs, sign: str, gamma: float, share: float) -> Cell:
        cdf = measured.cdfs[sign].get(gamma)
        return Cell(wording.NOTHING if cdf is None else f"{100 * cdf.hardest(share):.0f} %")

    return Table(
        [
            Columns(f"in the hardest {100 * share:g} % of {sign}", subheadings)
            for sign, share in parts
        ],
        [
            TableRow(
                row.name,
                "",
                row.name == sweep.reference,
                [
                    cell(losses[row.name], sign, gamma, share)
                    for sign, share in parts
                    for gamma in gammas
                ],
            )
            for row in sweep.rows
            if row.name in losses
        ],
    )


def _metrics(sweep: Sweep) -> dict[str, bool]:
    """AP, AP50, AP75 and whatever else the paper gives -> whether it gives it."""
    in_paper = {name: True for row in sweep.rows for name in row.paper}
    return {**dict.fromkeys(("AP", "AP50", "AP75"), False), **in_paper}


def _difference_cells(comparison: Comparison | None) -> list[Cell]:
    """The paper's and ours; both empty for the reference itself."""
    if comparison is None:
        return [Cell(""), Cell("")]
    paper = math.nan if comparison.paper is None else comparison.paper
    return [Cell(wording.signed(paper)), Cell(wording.with_margin(comparison.here))]


def _cost_cells(summary: RowSummary, num_seeds: int) -> list[Cell]:
    finished = summary.ap.n
    return [
        Cell(str(finished) if finished == num_seeds else f"{finished} of {num_seeds}"),
        Cell(wording.duration(summary.seconds.mean)),
        Cell(wording.memory(summary.peak_memory_mb)),
    ]
