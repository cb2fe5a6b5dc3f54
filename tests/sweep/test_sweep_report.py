"""The report of a sweep: what a reader finds in report.html and report.md."""

import json
import math
import re
from dataclasses import replace

import pytest

from focal_retina.sweep.grid import Figure, Row, Sweep, Tuning
from focal_retina.sweep.report import write_sweep_report
from focal_retina.sweep.results import LOSS_FOLDER, TrialResult

# AP of the paper's Table 1b for γ = 0, .5, 2, and of a row that it describes in words.
ROWS = [
    Row("γ 0, α .75", {}, {"AP": 31.1, "AP50": 49.4, "AP75": 33.0}, x=0),
    Row("γ .5, α .50", {}, {"AP": 32.9, "AP50": 51.7, "AP75": 35.2}, x=0.5),
    Row("FL* <2|$>", {}, {"AP": 34.0, "AP50": 52.5, "AP75": 36.5}, x=2),
    Row("CE without the prior", {}, {}, "diverges", x=9),
]
SWEEP = Sweep("gamma", "FL over γ", "R50-FPN on minival", "γ 0, α .75", ROWS, figure=Figure("γ"))
ABOUT = {"command": "sweep A_B '(\"x\",)'", "base_config": "base.yaml", "seeds": [1, 2, 3]}


def make_trial(folder, row, seed, ap, **changes):
    directory = f"trials/{len(list(folder.glob('trials/*')))}"
    (folder / directory).mkdir(parents=True)
    lines = [json.dumps({"iteration": i, "total_loss": 2 / (i + 1)}) for i in range(5)]
    (folder / directory / "metrics.json").write_text("\n".join(lines))
    fields = {
        "metrics": {"AP": ap, "AP50": ap + 20, "AP75": ap + 5} if ap else {},
        "git_commit": "d52e3299df99" + 28 * "0" + "+",
        "status": "done",
        "seconds": 252.0,
        "peak_memory_mb": 1433.6,
        "directory": directory,
    }
    return TrialResult(row.name, seed, "test", None, **{**fields, **changes})


def write_and_read(folder, results, sweep=SWEEP, **about):
    """The Markdown, the page, and the tables: a list of rows, each a dict, for each table."""
    write_sweep_report(sweep, results, folder, {**ABOUT, "tuned": {}, **about})
    markdown, page = ((folder / f"report.{x}").read_text(encoding="utf-8") for x in ("md", "html"))
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        heading, _, *rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in block.splitlines()]
        tables.append([dict(zip(heading, row, strict=True)) for row in rows])
    return markdown, page, tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A report on three seeds of three rows, one of them without an AP; the fourth row failed. Of
    the third row's first model the loss was measured."""
    folder = tmp_path_factory.mktemp("report")
    aps = [(49.6, 50.0, 50.4), (52.0, 50.0, None), (53.6, 54.0, 54.4)]
    results = [
        make_trial(folder, row, seed, ap)
        for row, row_aps in zip(ROWS, aps, strict=False)
        for seed, ap in enumerate(row_aps)
    ]
    error = "Traceback\n  <module>\nFloatingPointError: Loss became infinite or NaN"
    fields = {"status": "failed", "error": error, "attempts": 2, "directory": "none"}
    results += [make_trial(folder, ROWS[3], seed, 0, **fields) for seed in range(2)]
    curve = {"samples": [0.0, 0.8, 1.0], "loss": [0.0, 0.25, 1.0]}
    cdf = {"positives": {"0": curve, "2": None}, "negatives": {"0": curve, "2": curve}}
    content = {"images": 3, "samples": {"positives": 1234, "negatives": 400}, "cdf": cdf}
    path = folder / results[6].directory / LOSS_FOLDER / "loss_distribution.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return folder, *write_and_read(folder, results)


def test_table_sets_our_numbers_beside_the_papers(finished):
    _, _, page, ((heavy, light, best, words), *_) = finished
    # t = 2.776 with 4 degrees of freedom; std .4 and three seeds each.
    margin = f"{2.776 * math.sqrt(2 * 0.4**2 / 3):.1f}"
    assert "; ".join(f"{name}: {cell}" for name, cell in best.items()) == (
        "row: FL\\* &lt;2\\|$&gt;; AP, paper: 34.0; AP: **54.0 ± 0.4**; AP50, paper: 52.5; "
        "AP50: 74.0 ± 0.4; AP75, paper: 36.5; AP75: 59.0 ± 0.4; difference, paper: +2.9; "
        f"difference: +4.0 ± {margin}; verdict: ahead, as in the paper; seeds: 3 of 3; "
        "time: 0:04:12; peak memory: 1.4 GiB"
    )
    assert (heavy["verdict"], light["seeds"]) == ("reference", "2 of 3")
    assert (words["row"], words["AP"]) == ("CE without the prior (paper: diverges)", "–")
    assert "<td>FL* &lt;2|$&gt;</td>" in page


def test_both_pages_say_how_it_came_about_and_what_failed(finished):
    _, markdown, page, _ = finished
    facts = ["R50-FPN on minival", "base.yaml", "sweep A_B", "d52e3299df99+", "gave no AP"]
    for fact in [*facts, "failed after 2 attempts"]:
        assert fact in page and fact in markdown
    assert "    Traceback\n      <module>\n" in markdown
    assert "<code>Traceback\n  &lt;module&gt;\nFloatingPointError" in page


def test_loss_of_the_first_seeds_model_is_shown(finished):
    _, _, page, tables = finished
    (row,) = tables[1]
    # .75 of the loss evenly in 20 % of the samples
    assert list(row.values()) == ["FL\\* &lt;2\\|$&gt;", "75%", "–", "4%", "4%"]
    assert list(row)[1] == "hardest 20% of positives, γ 0"
    assert "on 3 test images\n(1,234 positives, 400 negatives)" in page


def test_html_needs_no_other_file_and_markdown_finds_its_pictures(finished):
    folder, markdown, page, _ = finished
    names = ["plots/ap_over_x.png", "plots/loss_curves.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", markdown) == names
    assert page.count('src="') == page.count('src="data:image/png;base64,') == 2
    assert all((folder / name).exists() for name in names)


def test_nothing_finished_yet(tmp_path):
    _, page, tables = write_and_read(tmp_path, [])
    assert "<img" not in page and "nan" not in page
    assert [row["AP"] for row in tables[0]] == ["–"] * 4


def test_tuning_shows_what_was_tried_and_chosen(tmp_path):
    tuning = Tuning("SOLVER.BASE_LR", [0.01, 0.0005])
    sweep = replace(SWEEP, rows=[Row("a", {}), Row("b", {})], reference="a", tuning=tuning)
    tried = [("a", 0.01, 40.0), ("a", 0.0005, 44.0), ("b", 0.01, 3.0)]
    results = [TrialResult(row, 1, "tune", value, "done", {"AP": ap}) for row, value, ap in tried]
    about = {"tuned": {"a": 0.0005, "b": 0.01}, "tune_on": ["cards_val"]}
    markdown, _, tables = write_and_read(tmp_path, results, sweep, **about)
    assert tables[1] == [
        {"row": "a", "0.01": "40.0", "0.0005": "**44.0**"},
        {"row": "b", "0.01": "**3.0**", "0.0005": "–"},
    ]
    assert tables[0][0]["SOLVER.BASE\\_LR"] == "0.0005" and "AP, paper" not in tables[0][0]
    assert "cards\\_val" in markdown
