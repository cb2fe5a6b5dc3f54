"""Sweep files: read, and refused with a word on what is wrong; and the trials that they make."""

from dataclasses import fields, replace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import ROOT, default_cfg

from focal_retina.sweep import grid
from focal_retina.sweep.grid import CodeInputs, Figure, Row, Sweep, Tuning

GOOD = """
title: A table
setting: somewhere
reference: CE
figure: {x_label: γ}
overrides: {DATASETS.TEST: [val]}
tuning: {key: SOLVER.BASE_LR, values: [0.1, 0.2]}
rows:
  - {name: CE, x: 0, overrides: {A.B: 0.0}, paper: {AP: 31.1}}
  - {name: 512, x: 2, overrides: {A.B: 2.0}, paper_note: diverges}
"""
GAMMA = "MODEL.RETINANET.FOCAL_LOSS_GAMMA"
NO_INPUTS = CodeInputs()
ROWS = [Row("CE", {GAMMA: 0.0}), Row("FL, γ 2", {GAMMA: 2.0})]
SWEEP = Sweep("table", "", "", "CE", ROWS, tuning=Tuning("SOLVER.BASE_LR", [0.1, 0.2], seeds=2))


@pytest.fixture
def read(tmp_path):
    def call(text):
        (tmp_path / "table.yaml").write_text(text, encoding="utf-8")
        return grid.read_sweep(tmp_path / "table.yaml")

    return call


def test_reads_every_field(read):
    rows = [
        Row("CE", {"A.B": 0.0}, {"AP": 31.1}, x=0),
        Row("512", {"A.B": 2.0}, paper_note="diverges", x=2),
    ]
    tuning = Tuning("SOLVER.BASE_LR", [0.1, 0.2], 1)
    overrides = {"DATASETS.TEST": ["val"]}
    expected = Sweep("table", "A table", "somewhere", "CE", rows, overrides, Figure("γ"), tuning)
    assert read(GOOD) == expected


@pytest.mark.parametrize(
    "old, new, message",
    [
        (GOOD, "a: [", "is not a sweep file: while parsing"),
        (GOOD, "[1, 2]", "top level is not a mapping"),
        ("rows:", "row:", "row: there is no such key; is it 'rows'"),
        ("title: A table", "", "top level has no key 'title'"),
        ("title: A", "legend: x\ntitle: A", "legend: .* the keys are title, setting"),
        ("setting: somewhere", "setting: [a]", r"setting is \['a'\], not text"),
        ("reference: CE", "reference: FL", "'FL', which is not a row"),
        ("name: 512", "name: CE", "the same name"),
        ("name: 512, ", "", r"rows\[2\] has no key 'name'"),
        ("paper_note", "papernote", r"rows\[2\].papernote: .* 'paper_note'"),
        ("{A.B: 0.0}", "[A.B, 0.0]", r"rows\[1\].overrides is .*, not a mapping"),
        ("AP: 31.1", "AP: x", r"rows\[1\].paper.AP is 'x', not a number"),
        ("x: 2, ", "", "number 'x' in row '512'"),
        ("values: [0.1, 0.2]", "values: []", "tuning.values is empty"),
        ("x_label: γ", "label: γ", "figure.label: .* 'x_label'"),
    ],
)
def test_what_is_wrong_is_said(read, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        read(GOOD.replace(old, new))
    assert "table.yaml is not a sweep file" in str(error.value) and "\n" not in str(error.value)


def test_rows_are_those_asked_for_and_the_reference(read):
    sweep = read(GOOD + "  - {name: third, x: 3}")
    assert [row.name for row in grid.select_rows(sweep, ["third"]).rows] == ["CE", "third"]
    with pytest.raises(ValueError, match=r"no row \['4th'\]; its rows are CE; 512; third"):
        grid.select_rows(sweep, ["4th", "512"])


def test_every_key_is_documented():
    page = (ROOT / "docs" / "redo_the_paper.md").read_text()
    keys = {field.name for kind in (Sweep, Row, Tuning, Figure) for field in fields(kind)}
    assert {key for key in keys if f"`{key}`" not in page} == set()


@pytest.fixture
def cfg():
    opts = ["DATASETS.TEST", ("test",), "TEST.EXPECTED_RESULTS", [["bbox", "AP", 50.0, 1.0]]]
    return default_cfg(*opts)


def test_tuning_and_test_do_not_share_seeds_nor_data(cfg):
    tuning = grid.plan_tuning(SWEEP, cfg, NO_INPUTS, ["coco_2014_val"])
    tests = grid.plan_tests(SWEEP, cfg, NO_INPUTS, range(1, 4), {"CE": 0.1, "FL, γ 2": 0.2})
    assert (len(tuning), len(tests)) == (2 * 2 * 2, 2 * 3)
    assert not {x.seed for x in tuning} & {x.seed for x in tests}
    assert {x.cfg.DATASETS.TEST for x in tuning} == {("coco_2014_val",)}
    assert {x.cfg.DATASETS.TEST for x in tests} == {("test",)}
    assert {(x.row, x.cfg.SOLVER.BASE_LR) for x in tests} == {("CE", 0.1), ("FL, γ 2", 0.2)}
    assert len({x.directory for x in [*tuning, *tests]}) == len(tuning) + len(tests)


@pytest.mark.parametrize(
    "datasets, message",
    [
        ([], "give --tune-on a data set"),
        (["test"], "other than DATASETS.TEST"),
        (["coco_2014_val", "coco_2014_train"], "give one data set"),
        (["none"], r"--tune-on \['none'\]: it is not registered"),
    ],
)
def test_nothing_is_chosen_on_the_data_of_the_test(cfg, datasets, message):
    with pytest.raises(ValueError, match=message):
        grid.plan_tuning(SWEEP, cfg, NO_INPUTS, datasets)
    with pytest.raises(ValueError, match="table has no key 'tuning'"):
        grid.plan_tuning(replace(SWEEP, tuning=None), cfg, NO_INPUTS, ["coco_2014_val"])


def test_a_trial_is_the_base_with_its_rows_overrides_and_seed(cfg):
    trial = grid.plan_tests(SWEEP, cfg, NO_INPUTS, [7], {})[1]
    expected = cfg.clone()
    expected.merge_from_list([GAMMA, 2.0, "SEED", 7, "TEST.EXPECTED_RESULTS", []])
    expected.SOLVER.CHECKPOINT_PERIOD = min(5000, cfg.SOLVER.MAX_ITER // 5)
    assert trial.cfg == expected


def test_hash_is_of_everything_that_changes_the_numbers(cfg, tmp_path):
    def digest(*opts, **inputs):
        base = cfg.clone()
        base.merge_from_list(opts)
        return grid.plan_tests(SWEEP, base, CodeInputs(**inputs), [1], {})[0].config_hash

    file = tmp_path / "loss.py or test.json"
    hashes = [digest(), digest("SOLVER.MOMENTUM", 0.5), digest(register=("a=b:c",))]
    assert digest("OUTPUT_DIR", "elsewhere") == hashes[0]
    generated = tmp_path / "generated.json"
    DatasetCatalog.register("generated", lambda: generated.write_text("[]"))
    MetadataCatalog.get("generated").set(json_file=str(generated), generated=True)
    before, after = (digest("DATASETS.TEST", ("generated",)) for _ in range(2))
    assert before == after  # although the first call has made its file
    for content in ("1", "2"):
        file.write_text(content)
        hashes.append(digest(imports=(str(file),)))
        hashes.append(digest(scripts=(file, file)))
    MetadataCatalog.get("test").json_file = str(file)
    for content in ("3", "4"):
        file.write_text(content)
        hashes.append(digest())
        hashes.append(digest("MODEL.WEIGHTS", str(file)))
    assert len(set(hashes)) == 11


@pytest.mark.parametrize("key", ["MODEL.NO_SUCH", "TEST.PATIENCE"])
def test_a_row_with_a_key_that_it_cannot_have_is_named(cfg, key):
    wrong = replace(SWEEP, rows=[Row("CE", {key: 1})])
    with pytest.raises(ValueError, match=f"row 'CE' of table: {key}"):
        grid.plan_tests(wrong, cfg, NO_INPUTS, [1], {})
