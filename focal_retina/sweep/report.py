"""The report of a sweep: report.md with its pictures in plots/, and the same as one HTML page."""

import base64
import contextlib
import html
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import markdown
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from ..figures import new_figure, style_axes
from ..figures.loss_cdf import hardest_shares, read_loss_cdf
from ..figures.training import Series, read_metrics
from ..files import atomic_write
from .grid import Sweep
from .results import LOSS_FOLDER, RowSummary, TrialResult, compare, number, summarize, tuned_ap

_NOTHING = "–"
_GROUND = "#eef0f3"  # of the pictures: it reads on a light and on a dark page


def write_sweep_report(
    sweep: Sweep, results: Sequence[TrialResult], directory: Path, about: Mapping[str, Any]
) -> None:
    """Write report.md with its pictures in plots/, and report.html, which needs no other file, to
    ``directory``, of what results.json there has; the trials' directories are relative to it."""
    summaries = summarize(sweep, results)
    trained = [(s.row.name, s.first_done.directory) for s in summaries if s.first_done]
    found = [(name, read_loss_cdf(directory / folder / LOSS_FOLDER)) for name, folder in trained]
    losses = {name: measured for name, measured in found if measured}
    style: Any = {"figure.facecolor": _GROUND, "axes.facecolor": _GROUND, "legend.frameon": False}
    with rc_context({"font.size": 9, **style}):
        pictures = _draw_pictures(sweep, summaries, directory)
    options: Any = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("focal_retina.sweep"), **options)
    environment.filters["md"] = escape_markdown
    page = environment.get_template("report.md.j2").render(
        sweep=sweep,
        about=about,
        commits=sorted({x.git_commit[:12] + x.git_commit[40:] for x in results if x.git_commit}),
        now=datetime.now(timezone.utc),
        results_table=_results_table(sweep, summaries, about),
        pictures=pictures,
        loss_table=[{"row": escape_markdown(x), **hardest_shares(y)} for x, y in losses.items()],
        measured=next(iter(losses.values()), None),
        tuning_table=_tuning_table(sweep, results, about["tuned"]),
        failures=[x for x in results if "AP" not in x.metrics],
    )
    body = markdown.markdown(page, extensions=["tables", "fenced_code"])
    for picture in pictures:
        png = base64.b64encode((directory / picture).read_bytes()).decode()
        body = body.replace(f'src="{picture}"', f'src="data:image/png;base64,{png}"')
    whole = environment.get_template("report.html.j2").render(title=sweep.title, body=body)
    for name, text in {"report.md": f"{page}\n", "report.html": f"{whole}\n"}.items():
        with atomic_write(directory / name, "w") as file:
            file.write(text)


def escape_markdown(value: Any) -> str:
    """So that "FL*", "a|b" or "<x>" is read as it is written."""
    text = " ".join(str(value).splitlines())
    text = "".join(f"\\{c}" if c in r"\`*_[]|#" else c for c in text)
    return html.escape(text, quote=False)


def _results_table(
    sweep: Sweep, summaries: Sequence[RowSummary], about: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Heading -> cell in Markdown, for each row: the paper's numbers, ours, and their cost."""
    reference = next(s for s in summaries if s.row.name == sweep.reference)
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
        cells |= {"difference, paper": "", "difference": "", "verdict": "reference"}
        if summary is not reference:
            gain = compare(summary, reference)
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
) -> list[dict[str, str]]:
    """AP by row and tried value, the chosen ones in bold."""
    if sweep.tuning is None:
        return []
    table = []
    for row in sweep.rows:
        table.append({"row": escape_markdown(row.name)})
        for value in sweep.tuning.values:
            ap = str(tuned_ap(results, row, value))
            table[-1][_plain(value)] = f"**{ap}**" if value == chosen.get(row.name) else ap
    return table


def _plain(value: Any) -> str:
    """A config value for a reader: a float without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else escape_markdown(value)


def _draw_pictures(sweep: Sweep, summaries: Sequence[RowSummary], directory: Path) -> list[str]:
    """Draw what there are numbers for; returns the PNGs' names, relative to ``directory``."""
    figures: dict[str, Figure] = {}
    if sweep.figure is not None and any(s.ap.n for s in summaries):
        figures["plots/ap_over_x.png"] = _draw_ap_over_x(summaries, sweep.figure.x_label)
    curves = {s.row.name: _read_loss_curves(s, directory) for s in summaries}
    if any(curves.values()):
        figures["plots/loss_curves.png"] = _draw_loss_curves(curves)
    (directory / "plots").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(directory / name)
    return list(figures)


def _draw_ap_over_x(summaries: Sequence[RowSummary], x_label: str) -> Figure:
    figure = new_figure(11, 4)
    paper, here = figure.subplots(1, 2, sharex=True, subplot_kw={"xlabel": x_label})
    style_axes(paper, "AP in the paper, %")
    style_axes(here, "AP here, %: mean ± std; dots are seeds")
    ordered = sorted(summaries, key=lambda s: s.row.x or 0.0)
    x = [s.row.x or 0.0 for s in ordered]
    paper.plot(x, [s.paper_ap for s in ordered], "s--", color="#8a5a00")
    bars = [s.ap.std if s.ap.n > 1 else 0.0 for s in ordered]
    here.errorbar(x, [s.ap.mean for s in ordered], bars, fmt="o-", color="#0b62c4", capsize=3)
    seeds = [(a, t.metrics.get("AP")) for a, s in zip(x, ordered, strict=True) for t in s.done]
    here.plot(*zip(*seeds, strict=True), "k.", zorder=3)
    return figure


def _draw_loss_curves(curves: Mapping[str, Sequence[Series]]) -> Figure:
    """Draw the training loss over the iterations, a line a trial, in the row's color and dash."""
    figure = new_figure(11, 4)
    axes = figure.add_subplot(xlabel="iteration", yscale="log")
    style_axes(axes, "total training loss")
    colors = colormaps["plasma"](np.linspace(0, 0.7, len(curves)))
    for (name, of_row), color, dash in zip(curves.items(), colors, cycle(("-", "--", ":"))):
        for i, series in enumerate(of_row):
            label = "" if i else name.replace("$", r"\$")  # a "$" in a name is not a formula
            axes.plot(*series, color=color, linestyle=dash, linewidth=1, label=label)
    figure.legend(loc="outside right upper")
    return figure


def _read_loss_curves(summary: RowSummary, directory: Path) -> list[Series]:
    """total_loss of a row's trials, failed ones among them: they may show how it diverged."""
    curves = []
    for trial in summary.trials:
        with contextlib.suppress(OSError, ValueError, KeyError):  # it failed before its first line
            curves.append(read_metrics(directory / trial.directory / "metrics.json")["total_loss"])
    return curves
