"""The report of a sweep: report.md with its pictures in plots/, and the same as one HTML page."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import markdown
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..figures.loss_cdf import MeasuredCdfs
from ..files import atomic_write
from .grid import Sweep
from .plots import draw_pictures
from .results import RowSummary, TrialResult, compare, number, read_losses, summarize, tuned_ap

# A table: a mapping from heading to cell for each row, in Markdown.
_Table = list[dict[str, str]]
_NOTHING = "–"
_HARDEST = (("positives", 0.2), ("negatives", 0.01))
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ max-width: 88rem; margin: auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
pre {{ white-space: pre-wrap; padding: .7rem; background: #8882; border-radius: .4rem; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid #8886; white-space: nowrap; }}
th {{ text-align: left; vertical-align: bottom; white-space: normal; }}
img {{ max-width: 100%; border-radius: .4rem; }}
</style></head>
<body>{body}</body></html>
"""


def write_sweep_report(
    sweep: Sweep, results: Sequence[TrialResult], directory: Path, about: Mapping[str, Any]
) -> None:
    """Write report.md with its pictures in plots/, and report.html, which needs no other file.

    Args:
        sweep, results: the table, and the trials that have ended.
        directory: where the report goes; the trials' directories are relative to it.
        about: results.json's "command", "base_config", "seeds" and "tuned".
    """
    summaries = summarize(sweep, results)
    losses = {
        s.row.name: read_losses(directory / s.first_done.directory) if s.first_done else None
        for s in summaries
    }
    pictures = draw_pictures(sweep, summaries, losses, directory)
    environment = Environment(
        loader=PackageLoader("focal_retina.sweep"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escape_markdown
    page = environment.get_template("report.md.j2").render(
        sweep=sweep,
        about=about,
        order=_order(summaries),
        commits=sorted({x.git_commit[:12] + x.git_commit[40:] for x in results if x.git_commit}),
        now=datetime.now(timezone.utc),
        results_table=_results_table(sweep, summaries, about),
        pictures=pictures,
        loss_table=_loss_table(losses),
        measured=next(filter(None, losses.values()), None),
        tuning_table=_tuning_table(sweep, results, about["tuned"]),
        failures=[x for x in results if "AP" not in x.metrics],
    )
    body = markdown.markdown(page, extensions=["tables", "fenced_code"])
    for picture in pictures:
        png = base64.b64encode((directory / picture).read_bytes()).decode()
        body = body.replace(f'src="{picture}"', f'src="data:image/png;base64,{png}"')
    with atomic_write(directory / "report.md", "w") as file:
        file.write(page + "\n")
    with atomic_write(directory / "report.html", "w") as file:
        file.write(_PAGE.format(title=html.escape(sweep.title), body=body))


def escape_markdown(value: Any) -> str:
    """So that "FL*", "a|b" or "<x>" is read as it is written."""
    text = " ".join(str(value).splitlines())
    text = "".join(f"\\{c}" if c in r"\`*_[]|#" else c for c in text)
    return html.escape(text, quote=False)


def _order(summaries: Sequence[RowSummary]) -> str:
    """How much of the paper's order of the rows the seeds show; "" where it has none."""
    pairs = [compare(first, second) for first, second in combinations(summaries, 2)]
    ordered = [pair.paper * pair.sign for pair in pairs if abs(pair.paper) > 0]
    same, opposite = sum(x > 0 for x in ordered), sum(x < 0 for x in ordered)
    if not ordered:
        return ""
    return (
        f"of {len(ordered)} pairs of rows that the paper orders, {same} have the same order here, "
        f"{opposite} the opposite one, and {len(ordered) - same - opposite} are not told apart"
    )


def _results_table(
    sweep: Sweep, summaries: Sequence[RowSummary], about: Mapping[str, Any]
) -> _Table:
    """The paper's numbers beside ours, and what ours have cost."""
    (reference,) = (s for s in summaries if s.row.name == sweep.reference)
    in_paper = dict.fromkeys(name for row in sweep.rows for name in row.paper)
    best = max((s.ap.mean for s in summaries if s.ap.n), default=math.nan)
    table = []
    for summary in summaries:
        row = summary.row
        note = f" (paper: {row.paper_note})" if row.paper_note else ""
        cells = {"row": escape_markdown(row.name + note)}
        for metric in {"AP": None, "AP50": None, "AP75": None} | in_paper:
            if metric in in_paper:
                cells[f"{metric}, paper"] = number(row.paper.get(metric, math.nan))
            cells[metric] = str(summary.metric(metric))
        if summary.ap.mean == best:
            cells["AP"] = f"**{cells['AP']}**"
        gain = compare(summary, reference)
        if summary is reference:
            cells |= {"difference, paper": "", "difference": "", "verdict": "reference"}
        else:
            interval = f" ± {gain.margin:.1f}" if math.isfinite(gain.margin) else ""
            cells["difference, paper"] = number(gain.paper, "+")
            cells["difference"] = number(gain.here, "+") + interval
            cells["verdict"] = gain.verdict
        if sweep.tuning is not None:
            chosen = about["tuned"].get(row.name, _NOTHING)
            cells[escape_markdown(sweep.tuning.key)] = _plain(chosen)
        cells["seeds"] = f"{summary.ap.n} of {len(about['seeds'])}"
        cells |= {"time": _NOTHING, "peak memory": _NOTHING}
        if summary.done:
            seconds = round(fmean(trial.seconds for trial in summary.done))
            peak = max(trial.peak_memory_mb for trial in summary.done)
            cells["time"] = str(timedelta(seconds=seconds))
            cells["peak memory"] = f"{peak / 1024:.1f} GiB"
        table.append(cells)
    return table


def _tuning_table(
    sweep: Sweep, results: Sequence[TrialResult], chosen: Mapping[str, Any]
) -> _Table:
    """AP by row and tried value, the chosen ones in bold."""
    if sweep.tuning is None:
        return []
    table = []
    for row in sweep.rows:
        aps = [(value, str(tuned_ap(results, row, value))) for value in sweep.tuning.values]
        best = chosen.get(row.name)
        cells = {_plain(value): f"**{ap}**" if value == best else ap for value, ap in aps}
        table.append({"row": escape_markdown(row.name), **cells})
    return table


def _loss_table(losses: Mapping[str, MeasuredCdfs | None]) -> _Table:
    """How concentrated the loss of each measured row's model is, for every γ that was measured."""
    table = []
    for name, measured in losses.items():
        if measured is not None:
            table.append({"row": escape_markdown(name)})
            for sign, share in _HARDEST:
                for gamma, cdf in measured.cdfs[sign].items():
                    held = _NOTHING if cdf is None else f"{cdf.hardest(share):.0%}"
                    table[-1][f"hardest {share:.0%} of {sign}, γ {gamma:g}"] = held
    return table


def _plain(value: Any) -> str:
    """A config value for a reader: a float without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else escape_markdown(value)
