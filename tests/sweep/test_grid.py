"""Sweep files: read, and refused with a word on what is wrong."""

import pytest

from focal_retina.sweep.grid import Figure, Tuning, flatten_overrides, read_sweep

GOOD = """
title: A table
setting: somewhere
reference: CE
figure: {x_label: γ}
overrides: {DATASETS.TEST: [val]}
tuning: {key: SOLVER.BASE_LR, values: [0.1, 0.2], datasets: [val]}
rows:
  - {name: CE, x: 0, overrides: {A.B: 0.0}, paper: {AP: 31.1}}
  - {name: 512, x: 2, overrides: {A.B: 2.0}, paper_note: diverges}
"""


@pytest.fixture
def write(tmp_path):
    def call(text):
        path = tmp_path / "table.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return call


def test_reads_every_field(write):
    sweep = read_sweep(write(GOOD))
    assert (sweep.name, sweep.title, sweep.setting) == ("table", "A table", "somewhere")
    assert [row.name for row in sweep.rows] == ["CE", "512"]
    assert sweep.rows[0].paper == {"AP": 31.1}
    assert sweep.rows[1].paper_note == "diverges"
    assert sweep.figure == Figure("γ")
    assert sweep.tuning == Tuning("SOLVER.BASE_LR", [0.1, 0.2], ["val"], 1)
    assert flatten_overrides(sweep.overrides) == ["DATASETS.TEST", ["val"]]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (GOOD, "a: [", "is not yaml"),
        (GOOD, "[1, 2]", "top level is not a mapping"),
        ("rows:", "lines:", 'no list "rows"'),
        ("title: A table", "", "title"),
        ("title: A table", "title: A table\nlegend: x", "legend"),
        ("reference: CE", "reference: FL", "'FL', which is not a row"),
        ("name: 512", "name: CE", "the same name"),
        ("{A.B: 0.0}", "[A.B, 0.0]", "overrides"),
        ("{AP: 31.1}", "31.1", "paper"),
        ("x: 2, ", "", "\"x\" in row '512'"),
        ("values: [0.1, 0.2]", "values: []", "tuning"),
        ("x_label: γ", "label: γ", "label"),
    ],
)
def test_what_is_wrong_is_said(write, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        read_sweep(write(GOOD.replace(old, new)))
    assert "table.yaml" in str(error.value)
