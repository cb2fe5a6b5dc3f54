"""Sweep files: read, and refused with a word on what is wrong; and the trials that they make."""

import json
from dataclasses import fields, replace

import pytest
from detectron2.data import MetadataCatalog
from helpers import ROOT, default_cfg

from focal_retina.sweep.grid import (
    CodeInputs,
    Figure,
    Row,
    Sweep,
    Tuning,
    plan_tests,
    plan_tuning,
    read_sweep,
)

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
GAMMA = "MODEL.RETINANET.FOCAL_LOSS_GAMMA"
NO_INPUTS = CodeInputs()
SWEEP = Sweep(
    name="table",
    title="",
    setting="",
    reference="CE",
    rows=[Row("CE", {GAMMA: 0.0}), Row("FL, γ 2", {GAMMA: 2.0})],
    tuning=Tuning("SOLVER.BASE_LR", [0.1, 0.2], datasets=["val"], seeds=2),
)


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
    assert sweep.overrides == {"DATASETS.TEST": ["val"]}


@pytest.mark.parametrize(
    "old, new, message",
    [
        (GOOD, "a: [", "is not a sweep file: while parsing"),
        (GOOD, "[1, 2]", "top level is not a mapping"),
        ("rows:", "row:", "row: there is no such key; is it 'rows'"),
        ("title: A table", "", "top level has no key 'title'"),
        ("title: A table", "title: A table\nlegend: x", "legend: .* the keys are title, setting"),
        ("setting: somewhere", "setting: [a]", r"setting is \['a'\], not text"),
        ("reference: CE", "reference: FL", "'FL', which is not a row"),
        ("name: 512", "name: CE", "the same name"),
        ("name: 512, ", "", r"rows\[2\] has no key 'name'"),
        ("paper_note", "papernote", r"rows\[2\].papernote: .* 'paper_note'"),
        ("{A.B: 0.0}", "[A.B, 0.0]", r"rows\[1\].overrides is .*, not a mapping"),
        ("{AP: 31.1}", "31.1", r"rows\[1\].paper is 31.1, not a mapping"),
        ("AP: 31.1", "AP: x", r"rows\[1\].paper.AP is 'x', not a number"),
        ("x: 2, ", "", "number 'x' in row '512'"),
        ("values: [0.1, 0.2]", "values: []", "tuning.values is empty"),
        ("values: [0.1, 0.2], ", "", "tuning has no key 'values'"),
        ("x_label: γ", "label: γ", "figure.label: .* 'x_label'"),
    ],
)
def test_what_is_wrong_is_said(write, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        read_sweep(write(GOOD.replace(old, new)))
    assert "table.yaml is not a sweep file" in str(error.value) and "\n" not in str(error.value)


def test_every_key_is_documented():
    page = (ROOT / "docs" / "redo_the_paper.md").read_text()
    keys = {field.name for kind in (Sweep, Row, Tuning, Figure) for field in fields(kind)}
    assert {key for key in keys if f"`{key}`" not in page} == set()


@pytest.fixture
def cfg():
    opts = ["DATASETS.TEST", ("test",), "TEST.EXPECTED_RESULTS", [["bbox", "AP", 50.0, 1.0]]]
    return default_cfg(*opts)


def test_tuning_and_test_do_not_share_seeds_nor_data(cfg):
    tuning = plan_tuning(SWEEP, cfg, NO_INPUTS)
    tests = plan_tests(SWEEP, cfg, NO_INPUTS, range(1, 4), {"CE": 0.1, "FL, γ 2": 0.2})
    assert len(tuning) == 2 * 2 * 2
    assert len(tests) == 2 * 3
    assert not {x.seed for x in tuning} & {x.seed for x in tests}
    assert {x.cfg.DATASETS.TEST for x in tuning} == {("val",)}
    assert {x.cfg.DATASETS.TEST for x in tests} == {("test",)}
    assert {(x.row, x.cfg.SOLVER.BASE_LR) for x in tests} == {("CE", 0.1), ("FL, γ 2", 0.2)}
    assert len({x.directory for x in [*tuning, *tests]}) == len(tuning) + len(tests)


def test_a_trial_is_the_base_with_its_rows_overrides_and_seed(cfg):
    trial = plan_tests(SWEEP, cfg, NO_INPUTS, [7], {})[1]
    expected = cfg.clone()
    expected.merge_from_list([GAMMA, 2.0, "SEED", 7, "TEST.EXPECTED_RESULTS", []])
    expected.SOLVER.CHECKPOINT_PERIOD = min(5000, cfg.SOLVER.MAX_ITER // 5)
    assert trial.cfg == expected


def test_hash_is_of_everything_that_changes_the_numbers(cfg, tmp_path):
    def digest(inputs=NO_INPUTS, **changes):
        base = cfg.clone()
        for key, value in changes.items():
            base.merge_from_list([key.replace("__", "."), value])
        return plan_tests(SWEEP, base, inputs, [1], {})[0].config_hash

    loss, annotations = tmp_path / "loss.py", tmp_path / "test.json"
    loss.write_text("a = 1")
    hashes = [digest(), digest(SOLVER__MOMENTUM=0.5), digest(CodeInputs(register=("a=b:c",)))]
    hashes.append(digest(CodeInputs(imports=(str(loss),))))
    loss.write_text("a = 2")
    hashes.append(digest(CodeInputs(imports=(str(loss),))))
    MetadataCatalog.get("test").json_file = str(annotations)
    for content in ("{}", "[]"):
        annotations.write_text(json.dumps(content))
        hashes.append(digest())
    MetadataCatalog.remove("test")
    assert len(set(hashes)) == 7
    assert digest(OUTPUT_DIR="elsewhere") == hashes[0]


def test_a_row_with_an_unknown_key_is_named(cfg):
    wrong = replace(SWEEP, rows=[Row("CE", {"MODEL.NO_SUCH": 1})])
    with pytest.raises(ValueError, match=r"row 'CE' of table: MODEL.NO_SUCH 1"):
        plan_tests(wrong, cfg, NO_INPUTS, [1], {})
