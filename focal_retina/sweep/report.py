"""The report of a sweep: one page to look at, and the same as Markdown for a repository."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..analysis.plots.themes import DARK, LIGHT
from . import wording
from .grid import Sweep
from .loss_cdfs import read_row_losses
from .pictures import draw_loss_picture, draw_pictures, read_loss_curves
from .results import TrialResult, write_atomically
from .statistics import (
    Comparison,
    Verdict,
    compare_all_pairs,
    compare_with_reference,
    summarize,
)
from .tables import loss_table, results_table, tuning_table

_HEADINGS = {
    Verdict.REPRODUCED: "Reproduced",
    Verdict.NOT_REPRODUCED: "Not reproduced",
    Verdict.UNDECIDED: "Undecided",
    Verdict.NO_ORDER: "Not ordered by the paper",
    Verdict.NO_RESULT: "No result",
}


def write_sweep_report(
    sweep: Sweep,
    results: Sequence[TrialResult],
    directory: Path,
    *,
    command: str = "",
    base_config: str = "",
    num_seeds: int | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write report.html, which needs no other file, and report.md with its pictures in plots/.

    It may be written while the sweep is running.

    Args:
        sweep: the table.
        results: of the trials that have ended, in any order and number.
        directory: where the report goes; the trials' directories are relative to it.
        command: with which the sweep was run.
        base_config: name of the config that the rows change.
        num_seeds: how many a row is to have; by default as many as ``results`` has.
        notes: more for the report's head, name -> value.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if num_seeds is None:
        num_seeds = len({result.seed for result in results if result.stage == "test"})
    summaries = summarize(sweep, results)
    comparisons = compare_with_reference(sweep, summaries)
    pairs = compare_all_pairs(summaries)
    curves, missing = read_loss_curves(summaries, directory)
    losses = read_row_losses(summaries, directory)
    facts = {
        "Paper’s numbers": sweep.setting,
        "Base config": base_config,
        "Trials": wording.trial_counts(sweep, results, num_seeds),
        "Code": wording.commits(results),
        "Written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **{name: wording.plain(value) for name, value in (notes or {}).items()},
    }
    context = {
        "title": sweep.title,
        "facts": {name: value for name, value in facts.items() if value},
        "command": command,
        "headline": wording.headline(summaries, pairs),
        "verdicts": _group(comparisons),
        "rule": wording.RULE,
        "remarks": wording.remarks(sweep, summaries, results, missing),
        "table": results_table(sweep, summaries, comparisons, num_seeds),
        "tuning": tuning_table(sweep, summaries, results),
        "tuned_on": sweep.tuning and wording.tuned_on(sweep.tuning),
        "pictures": draw_pictures(sweep, summaries, comparisons, curves, directory),
        "losses": losses and loss_table(sweep, losses),
        "loss_picture": losses and draw_loss_picture(sweep, losses, directory),
        "measured_on": losses and wording.measured_on(losses),
        "pairs": _group(pairs),
        "failures": [(wording.failure(r), r.error) for r in results if r.status != "done"],
        "themes": {"light": LIGHT, "dark": DARK},
    }
    for name, options in (
        ("report.html", {"autoescape": True}),
        ("report.md", {"finalize": _escape_markdown}),
    ):
        environment = Environment(
            loader=PackageLoader("focal_retina.sweep"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            **options,
        )
        page = environment.get_template(f"{name}.j2").render(context)
        write_atomically(directory / name, page.rstrip() + "\n")


def _group(comparisons: Sequence[Comparison]) -> dict[str, list[str]]:
    """Heading -> its sentences, without the empty ones."""
    groups = {
        heading: [wording.sentence(c) for c in comparisons if c.verdict is verdict]
        for verdict, heading in _HEADINGS.items()
    }
    return {heading: sentences for heading, sentences in groups.items() if sentences}


def _escape_markdown(value: Any) -> Any:
    """So that "FL*", "a|b" or "<x>" is read as it is written; what a template marks safe stays."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).splitlines())
    return "".join(f"\\{c}" if c in r"\`*_[]<>|~#" else c for c in text)
