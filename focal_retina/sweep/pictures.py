"""The pictures of a sweep's report."""

import base64
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..analysis.loss_report import MeasuredCdfs
from ..analysis.plots.sweep import (
    SweepPoint,
    TimePoint,
    draw_ap_against_time,
    draw_ap_over_x,
    draw_loss_curves,
    draw_row_loss_cdfs,
)
from ..analysis.plots.themes import DARK, LIGHT
from ..analysis.training_metrics import Series, read_metrics
from .grid import Sweep
from .statistics import Comparison, RowSummary, mean_curve

FOLDER = "plots"


class Picture(NamedTuple):
    """One picture for either page.

    Attributes:
        title: above it.
        caption: below it.
        file: relative to the report.
        light: the same as a data URI.
        dark: for a dark page, as a data URI.
    """

    title: str
    caption: str
    file: str
    light: str
    dark: str


def read_loss_curves(
    summaries: Sequence[RowSummary], directory: Path
) -> tuple[dict[str, Series], list[str]]:
    """Name of a row -> its smoothed mean of total_loss; and the trials that have none.

    A failed trial's curve counts as far as it goes: it may show how the training diverged.
    """
    curves, missing = {}, []
    for summary in summaries:
        series = []
        for trial in (*summary.done, *summary.failed):
            try:
                metrics = read_metrics(directory / trial.directory / "metrics.json")
                series.append(metrics["total_loss"])
            except (OSError, ValueError, KeyError):
                missing.append(f"{trial.row} (seed {trial.seed})")
        curves[summary.row.name] = mean_curve(series)
    return curves, missing


def draw_pictures(
    sweep: Sweep,
    summaries: Sequence[RowSummary],
    comparisons: Sequence[Comparison],
    curves: Mapping[str, Series],
    directory: Path,
) -> list[Picture]:
    """Draw what there are numbers for, as PNGs in ``directory / "plots"``.

    Args:
        sweep: the table.
        summaries: its rows.
        comparisons: those with the reference row.
        curves: of :func:`read_loss_curves`.
        directory: the report's.
    """
    pictures = []
    if sweep.figure is not None:
        draw = partial(
            draw_ap_over_x,
            _points(sweep, summaries, comparisons),
            x_label=sweep.figure.x_label,
            log=sweep.figure.log,
            reference=sweep.reference,
        )
        caption = (
            f"The paper’s AP and ours over {sweep.figure.x_label}, each on its own scale; on the "
            f"right both as a difference to {sweep.reference}, on one scale."
        )
        pictures.append(
            _picture("ap_over_x", f"AP over {sweep.figure.x_label}", caption, draw, directory)
        )
    times = {s.row.name: TimePoint(s.seconds.mean, s.ap.mean, s.ap.std) for s in summaries}
    if any(math.isfinite(point.ap) for point in times.values()):
        caption = "What each row’s AP costs: wall time on the machine that the sweep ran on."
        draw = partial(draw_ap_against_time, times)
        pictures.append(_picture("ap_against_time", "AP against time", caption, draw, directory))
    if any(curve.iterations for curve in curves.values()):
        caption = (
            "Mean of the seeds, smoothed. Rows that differ in the loss itself differ in its scale: "
            "compare their shapes, not their heights."
        )
        draw = partial(draw_loss_curves, curves)
        pictures.append(_picture("loss_curves", "Training loss", caption, draw, directory))
    return pictures


def draw_loss_picture(sweep: Sweep, losses: Mapping[str, MeasuredCdfs], directory: Path) -> Picture:
    """Draw where the loss of the rows' models is, as a PNG in ``directory / "plots"``.

    Args:
        sweep: the table; a row that was not measured keeps its colour.
        losses: name of a row -> what was measured, of at least one.
        directory: the report's.
    """
    cdfs = {row.name: losses[row.name].cdfs if row.name in losses else {} for row in sweep.rows}
    title = "Where the loss of the trained models is"
    caption = (
        "The share of all positives’, or of all negatives’, loss that the hardest of them hold: "
        "figure 4 of the paper from the side of the high losses. Every model is measured with the "
        "same losses, whatever it was trained with: cross-entropy (γ 0) and the focal loss of γ 2."
    )
    return _picture("loss_cdfs", title, caption, partial(draw_row_loss_cdfs, cdfs), directory)


def _picture(
    name: str, title: str, caption: str, draw: Callable[..., None], directory: Path
) -> Picture:
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    file = f"{FOLDER}/{name}.png"
    draw(theme=LIGHT, out_png=directory / file)
    with tempfile.TemporaryDirectory() as temporary:
        dark = Path(temporary) / "dark.png"
        draw(theme=DARK, out_png=dark)
        return Picture(title, caption, file, _data_uri(directory / file), _data_uri(dark))


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _points(
    sweep: Sweep, summaries: Sequence[RowSummary], comparisons: Sequence[Comparison]
) -> list[SweepPoint]:
    by_name = {comparison.first.name: comparison for comparison in comparisons}
    points = []
    for summary in summaries:
        row, ap = summary.row, summary.ap
        if row.x is None:
            continue
        paper_gain, gain, margin = math.nan, math.nan, math.nan
        if row.name == sweep.reference:
            paper_gain, gain = (0.0 if "AP" in row.paper else math.nan), (0.0 if ap.n else math.nan)
        else:
            comparison = by_name[row.name]
            paper_gain = math.nan if comparison.paper is None else comparison.paper
            gain, margin = comparison.here.value, comparison.here.margin
        aps = [trial.metrics.get("AP", math.nan) for trial in summary.done]
        paper = row.paper.get("AP", math.nan)
        points.append(SweepPoint(row.x, paper, aps, ap.mean, ap.std, paper_gain, gain, margin))
    return points
