"""The report of a sweep: what a reader finds in report.html and report.md."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from focal_retina.sweep import pictures
from focal_retina.sweep.grid import Figure, Row, Sweep, Tuning
from focal_retina.sweep.report import write_sweep_report
from focal_retina.sweep.results import TrialResult

# AP of the paper's Table 1b for γ = 0, .5, 2, and of a row that it describes in words.
ROWS = [
    Row("γ 0, α .75", {}, {"AP": 31.1, "AP50": 49.4, "AP75": 33.0}, x=0),
    Row("γ .5, α .50", {}, {"AP": 32.9, "AP50": 51.7, "AP75": 35.2}, x=0.5),
    Row("γ 2, α .25", {}, {"AP": 34.0, "AP50": 52.5, "AP75": 36.5}, x=2),
    Row("CE without the prior", {}, {}, "diverges", x=9),
]
SWEEP = Sweep("gamma", "FL over γ", "R50-FPN on minival", "γ 0, α .75", ROWS, figure=Figure("γ"))


@pytest.fixture
def make_trial(tmp_path):
    def make(row, seed, ap, **changes):
        directory = f"trials/{len(list(tmp_path.glob('trials/*')))}"
        (tmp_path / directory).mkdir(parents=True)
        losses = [{"iteration": i, "total_loss": 2 / (i + 1)} for i in range(5)]
        text = "".join(json.dumps(line) + "\n" for line in losses)
        (tmp_path / directory / "metrics.json").write_text(text)
        result = TrialResult(
            row=row.name,
            seed=seed,
            stage="test",
            tuned=None,
            status="done",
            metrics={"AP": ap, "AP50": ap + 20, "AP75": ap + 5},
            seconds=252.0,
            peak_memory_mb=1433.6,
            git_commit="d52e3299df99e122e5946b916481dab038bc4770+",
            directory=directory,
        )
        return replace(result, **changes)

    return make


@pytest.fixture
def write_report(monkeypatch):
    """The report with empty files as pictures: drawing takes a second."""

    def draw(*arguments, theme, out_png, **options):
        out_png.touch()

    drawings = ("ap_over_x", "ap_against_time", "loss_curves", "row_loss_cdfs")
    for name in [f"draw_{drawing}" for drawing in drawings]:
        monkeypatch.setattr(pictures, name, draw)
    return write_sweep_report


class Page(HTMLParser):
    """Text, tables and addresses of a page; every element has to be closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        assert "script" not in self.open
        if "style" not in self.open:
            self.text += " ".join(data.split()) + " "
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += " ".join(data.split()) + " "


def read(directory):
    """The page, the Markdown, and the lines of the page's first table."""
    page = Page((directory / "report.html").read_text(encoding="utf-8"))
    lines = [[cell.strip() for cell in line] for line in page.tables[0]]
    return page, (directory / "report.md").read_text(encoding="utf-8"), lines


@pytest.fixture
def finished(make_trial):
    """Three seeds of three rows; the fourth row failed."""
    aps = [(49.6, 50.0, 50.4), (52.0, 50.0, 48.5), (53.6, 54.0, 54.4)]
    done = [
        make_trial(row, seed, ap)
        for row, row_aps in zip(ROWS, aps, strict=False)
        for seed, ap in enumerate(row_aps)
    ]
    error = "Traceback\n  <module>\nFloatingPointError: Loss became infinite or NaN"
    failed = [
        make_trial(ROWS[3], seed, 0, status="failed", metrics={}, error=error, attempts=2)
        for seed in range(2)
    ]
    return [*done, *failed]


def test_table_sets_our_numbers_beside_the_papers(write_report, tmp_path, finished):
    write_report(SWEEP, finished, tmp_path, num_seeds=3)
    _, markdown, lines = read(tmp_path)
    # t = 2.776 with 4 degrees of freedom; std .4 and three seeds each.
    margin = f"{2.776 * math.sqrt(2 * 0.4**2 / 3):.1f}"
    expected = ["γ 2, α .25", "34.0", "54.0 ± 0.4", "+2.9", f"+4.0 ± {margin}"]
    expected += ["52.5", "74.0 ± 0.4", "36.5", "59.0 ± 0.4", "3", "4 min 12 s", "1.4 GiB"]
    assert expected in lines
    assert lines[2][:5] == ["γ 0, α .75 reference", "31.1", "50.0 ± 0.4", "", ""]
    assert lines[5][0] == "CE without the prior paper: diverges"
    assert lines[5][1:] == ["–"] * 8 + ["0 of 3", "–", "–"]
    in_markdown = expected.copy()
    in_markdown[1:3] = ["**34.0**", "**54.0 ± 0.4**"]  # the highest
    assert f"| {' | '.join(in_markdown)} |" in markdown


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_sentences_say_what_is_reproduced(write_report, tmp_path, finished, name):
    write_report(SWEEP, finished, tmp_path, num_seeds=3)
    text = (tmp_path / name).read_text()
    assert "γ 2, α .25: 54.0 ± 0.4 (3 seeds), which is the paper’s highest as well (34.0)." in text
    reproduced, undecided = text.index("Reproduced"), text.index("Undecided")
    assert reproduced < text.index("γ 2, α .25 above γ 0, α .75 (paper +2.9, here +4.0") < undecided
    assert undecided < text.index("γ .5, α .50 above γ 0, α .75 (paper +1.8, here +0.2 ±")
    assert "Not reproduced" not in text
    assert "the paper says “diverges”; here 2 trials failed." in text


def test_an_order_of_the_other_sign_is_not_reproduced(write_report, tmp_path, make_trial):
    aps = {0: (50.0, 50.1), 2: (40.0, 40.1)}
    results = [make_trial(ROWS[i], s, ap) for i, row in aps.items() for s, ap in enumerate(row)]
    write_report(SWEEP, results, tmp_path)
    _, markdown, _ = read(tmp_path)
    heading = markdown.index("**Not reproduced**")
    assert heading < markdown.index("γ 2, α .25 above γ 0, α .75 (paper +2.9, here −10.0 ± 0.")
    assert "none came out in the paper’s order, 1 in the opposite one" in markdown


def test_head_says_how_it_came_about(write_report, tmp_path, finished):
    command = "./run tools/sweep.py gamma.yaml --config-file base.yaml A_B '(\"x\",)'"
    notes = {"Machine": "2 cores", "Schedule": 1100}
    write_report(
        SWEEP,
        finished,
        tmp_path,
        command=command,
        base_config="base.yaml",
        num_seeds=3,
        notes=notes,
    )
    page, markdown, _ = read(tmp_path)
    assert command in page.text and f"```\n{command}\n```" in markdown
    counts = "4 rows × 3 seeds: 9 done, 2 failed, 1 unfinished"
    facts = ("R50-FPN on minival", "base.yaml", counts, "2 cores", "1100")
    for fact in (*facts, "d52e3299df99 with local changes"):
        assert fact in page.text and fact in markdown
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d UTC", page.text)


def test_failed_trials_show_their_logs_end(write_report, tmp_path, finished):
    write_report(SWEEP, finished, tmp_path)
    page, markdown, _ = read(tmp_path)
    summary = "seed 1, after 2 attempts: FloatingPointError: Loss became infinite or NaN"
    assert summary in page.text and summary in markdown
    assert "Traceback <module>" in page.text
    assert "    Traceback\n      <module>\n" in markdown


def test_html_needs_no_other_file_and_markdown_finds_its_pictures(tmp_path, finished):
    write_sweep_report(SWEEP, finished, tmp_path / "deep" / "report")
    page, markdown, _ = read(tmp_path / "deep" / "report")
    assert len(page.addresses) == 4  # AP over γ and against time, light and dark
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    links = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert links == ["plots/ap_over_x.png", "plots/ap_against_time.png"]
    for link in links:
        picture = cv2.imread(str(tmp_path / "deep" / "report" / link))
        assert np.ptp(picture) > 100


def test_loss_curves_are_drawn_and_missing_ones_named(tmp_path, finished):
    missing, empty = finished[0], finished[1]
    (tmp_path / missing.directory / "metrics.json").unlink()
    (tmp_path / empty.directory / "metrics.json").write_text("")
    write_sweep_report(SWEEP, finished, tmp_path)
    page, markdown, _ = read(tmp_path)
    words = "No loss curve could be read of γ 0, α .75 (seed 0); γ 0, α .75 (seed 1)."
    assert words in page.text and words in markdown
    assert (tmp_path / "plots" / "loss_curves.png").exists()


def test_texts_are_shown_as_they_are_written(write_report, tmp_path, make_trial):
    name = "FL* <b>&amp; a|b `c` [d](e) _f_"
    row = Row(name, {}, {"AP": 1.0})
    other = Row("x" * 300, {}, {"AP": 2.0})
    sweep = Sweep("s", "<script>alert(1)</script>", "<i>", name, [row, other])
    results = [make_trial(row, 0, 1.0), make_trial(other, 0, 1.0, status="failed", error="<u>")]
    write_report(sweep, results, tmp_path, command="<s>", notes={"<n>": "<v>"})
    page, markdown, lines = read(tmp_path)
    assert name in page.text and "<script>alert(1)</script>" in page.text
    assert lines[2][0] == f"{name} reference"
    unescaped = re.sub(r"\\(.)", r"\1", markdown)
    assert name in unescaped and name not in markdown
    header, rule, *rows = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in (header, rule, *rows)]
    assert len(set(cells)) == 1


def test_one_seed_has_no_deviation_and_decides_nothing(write_report, tmp_path, make_trial):
    write_report(SWEEP, [make_trial(row, 7, 50.0 + i) for i, row in enumerate(ROWS)], tmp_path)
    page, _, lines = read(tmp_path)
    assert lines[3][:5] == ["γ .5, α .50", "32.9", "51.0", "+1.8", "+1.0"]
    assert "each row needs at least two finished seeds" in page.text
    assert "(paper +1.8, here +1.0, too few seeds)" in page.text


def test_report_before_the_first_trial_is_done(write_report, tmp_path):
    write_report(SWEEP, [], tmp_path, num_seeds=3)
    page, markdown, _ = read(tmp_path)
    assert "No trial has finished with an AP yet." in page.text
    assert "4 rows × 3 seeds: 0 done, 12 unfinished" in markdown


def test_nan_ap_is_left_out_and_said(write_report, tmp_path, finished):
    results = [replace(finished[0], metrics={"AP": math.nan}), *finished[1:]]
    write_report(SWEEP, results, tmp_path, num_seeds=3)
    page, _, lines = read(tmp_path)
    assert lines[2][2] == "50.2 ± 0.3" and lines[2][-3] == "2 of 3"
    assert "γ 0, α .75: its evaluation gave no AP with seed 0;" in page.text
    assert "nan" not in page.text


def test_rows_without_numbers_of_the_paper(write_report, tmp_path, make_trial):
    rows = [Row(name, {}) for name in ("FL", "CE", "OHEM")]
    sweep = Sweep("cards", "Cards", "", "FL", rows)
    aps = [(45.0, 45.2), (40.0, 40.2), (40.1, 40.3)]
    results = [
        make_trial(row, seed, ap)
        for row, both in zip(rows, aps, strict=True)
        for seed, ap in enumerate(both)
    ]
    write_report(sweep, results, tmp_path)
    page, _, lines = read(tmp_path)
    assert lines[0][:5] == ["row", "AP", "AP − reference", "AP50", "AP75"]
    assert "paper" not in lines[1]
    assert "The paper has no numbers for these rows to compare with." in page.text
    assert "Of 3 pairs of rows, 2 can be told apart at these seeds." in page.text
    assert "CE below FL (here −5.0 ±" in page.text


def test_tuning_shows_what_was_tried_and_chosen(write_report, tmp_path, make_trial):
    tuning = Tuning("SOLVER.BASE_LR", [0.01, 0.0005], datasets=["cards_val"], seeds=1)
    sweep = replace(SWEEP, rows=ROWS[:2], tuning=tuning)
    tried = [
        make_trial(ROWS[0], 1001, 40.0, stage="tune", tuned=0.01),
        make_trial(ROWS[0], 1002, 44.0, stage="tune", tuned=0.0005),
        make_trial(ROWS[1], 1001, 0.0, stage="tune", tuned=0.01, status="failed", metrics={}),
    ]
    tests = [make_trial(ROWS[0], seed, 50.0, tuned=0.0005) for seed in range(2)]
    write_report(sweep, [*tried, *tests], tmp_path, num_seeds=2)
    page, markdown, lines = read(tmp_path)
    assert lines[2][-4:] == ["0.0005", "2", "4 min 12 s", "1.4 GiB"]
    table = [[cell.strip() for cell in line] for line in page.tables[1]]
    assert table[1:] == [
        ["0.01", "0.0005"],
        ["γ 0, α .75 reference", "40.0", "44.0"],
        ["γ .5, α .50", "failed", "–"],
    ]
    assert "| γ 0, α .75 (reference) | 40.0 | **44.0** |" in markdown
    assert "AP on cards\\_val with 1 seed a value" in markdown
    assert "2 rows × 2 values × 1 seed: 2 done, 1 failed, 1 unfinished" in page.text


@pytest.mark.parametrize(
    ("values", "chosen", "end"),
    [
        ([0.1, 1.0, 10.0], 10.0, "largest"),
        ([10.0, 0.1, 1.0], 0.1, "smallest"),
        ([0.1, 1.0, 10.0], 1.0, None),
        ([0.1, 1.0], 1.0, None),
        (["a", "b", "c"], "c", None),
    ],
)
def test_a_choice_at_the_end_of_what_was_tried_is_remarked(
    write_report, tmp_path, make_trial, values, chosen, end
):
    sweep = replace(SWEEP, rows=ROWS[:2], tuning=Tuning("SOLVER.BASE_LR", values))
    trials = [make_trial(row, 1, 50.0, tuned=chosen) for row in ROWS[:2]]
    write_report(sweep, trials, tmp_path)
    told = "γ 0, α .75; γ .5, α .50: the chosen SOLVER.BASE_LR, {:g}, is the {}"
    remark = told.format(chosen, end) if end else "a better one may"
    assert (remark in read(tmp_path)[0].text) == (end is not None)


def test_losses_of_the_first_finished_seeds_models_are_shown(write_report, tmp_path, finished):
    curve = {"samples": [0.0, 0.8, 1.0], "loss": [0.0, 0.25, 1.0], "error": 0.0}
    content = {
        "images": 3,
        "samples": {"positives": 1234, "negatives": 400},
        "cdf": {"positives": {"0": curve, "2": None}, "negatives": {"0": curve, "2": curve}},
    }
    first = next(x for x in finished if x.row == ROWS[2].name)
    folder = tmp_path / first.directory / "loss_distribution"
    folder.mkdir()
    (folder / "loss_distribution.json").write_text(json.dumps(content))
    write_report(SWEEP, finished, tmp_path)
    page, markdown, _ = read(tmp_path)
    table = [[cell.strip() for cell in line] for line in page.tables[1]]
    assert table == [
        ["row", "in the hardest 20 % of positives", "in the hardest 1 % of negatives"],
        ["γ 0", "γ 2", "γ 0", "γ 2"],
        ["γ 2, α .25", "75 %", "–", "4 %", "4 %"],  # .75 of the loss evenly in 20 % of samples
    ]
    assert "on 3 test images (1,234 positives, 400 negatives)" in page.text
    assert "| γ 2, α .25 | 75 % | – | 4 % | 4 % |" in markdown
    assert "![Where the loss of the trained models is](plots/loss_cdfs.png)" in markdown
    assert len(page.addresses) == 2 * 4


def test_results_of_unknown_rows_are_not_lost_silently(write_report, tmp_path, finished):
    write_report(replace(SWEEP, rows=ROWS[:1]), finished, tmp_path)
    page, _, _ = read(tmp_path)
    assert "rows that are not in this sweep: CE without the prior; γ .5, α .50" in page.text


def test_reports_are_replaced(write_report, tmp_path, finished):
    for results in ([], finished):
        write_report(SWEEP, results, tmp_path)
    assert "54.0 ± 0.4" in read(tmp_path)[1]
    assert {p.name for p in tmp_path.iterdir()} == {"plots", "report.html", "report.md", "trials"}
