"""configs/sweeps/: the paper's rows and numbers, and rows that make a config and a loss."""

import json

import pytest
from config_files import CONFIGS, SWEEPS, commands, differences, header, load, name_of
from paper_tables import ALPHA, GAMMA, LOSS, TABLES

from focal_retina.losses import build_cls_loss
from focal_retina.sweep.grid import flatten_overrides, read_sweep

TABLE_SWEEPS = [path for path in SWEEPS if not path.stem.startswith("real_")]
REAL_SWEEPS = [path for path in SWEEPS if path.stem.startswith("real_")]
DATA = CONFIGS.parents[1] / "shared" / "data"
# Rows of the text, not of a table, which have no yaml in configs/paper/.
TEXT_ROWS = {"CE, π .1", "CE, π .001"}


def row_config(sweep, row, base):
    cfg = load(base)
    cfg.merge_from_list(flatten_overrides({**sweep.overrides, **row.overrides}))
    return cfg


def base_of(path):
    (command,) = commands(path)
    return command[command.index("--config-file") + 1].removeprefix("configs/")


def table_rows(path):
    """Pairs of a sweep's row and the paper's."""
    rows = [row for row in read_sweep(path).rows if row.name not in TEXT_ROWS]
    return list(zip(rows, TABLES[path.stem], strict=True))


def test_the_tables_are_there():
    expected = set(TABLES) - {"table2_state_of_the_art"}  # a table of results, not of one variable
    assert {path.stem for path in TABLE_SWEEPS} == expected
    assert {path.stem for path in REAL_SWEEPS} == {"real_cards", "real_bccd"}


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_every_row_makes_a_config_and_a_loss(path):
    sweep = read_sweep(path)
    configs = [row_config(sweep, row, base_of(path)) for row in sweep.rows]
    for cfg in configs:
        build_cls_loss(cfg)
    assert len({cfg.dump() for cfg in configs}) == len(configs)
    if sweep.tuning is not None:
        for value in sweep.tuning.values:
            configs[0].merge_from_list([sweep.tuning.key, value])


@pytest.mark.parametrize("path", TABLE_SWEEPS, ids=name_of)
def test_numbers_are_the_papers(path):
    for row, paper in table_rows(path):
        assert row.paper == paper.paper
        assert bool(row.paper) or row.paper_note == "diverges early"


def with_ce_as_focal_loss(cfg):
    """Cross-entropy is the focal loss with γ 0; it doesn't look at γ."""
    if cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME == "CrossEntropy":
        cfg.merge_from_list([LOSS, "FocalLoss", GAMMA, 0.0])
    return cfg


@pytest.mark.parametrize("path", TABLE_SWEEPS, ids=name_of)
def test_on_the_papers_base_the_rows_are_those_of_configs_paper(path):
    base = "paper/Base-Paper-R101.yaml" if path.stem == "table1d_ohem" else "paper/Base-Paper.yaml"
    assert f"configs/{base}" in "\n".join(header(path))
    sweep = read_sweep(path)
    for row, paper in table_rows(path):
        ours = with_ce_as_focal_loss(row_config(sweep, row, base))
        theirs = with_ce_as_focal_loss(load(f"paper/{path.stem}/{paper.file}.yaml"))
        changed = differences(ours, theirs)
        # A sweep needs annotations, which test-dev doesn't give out.
        assert set(changed) <= {"OUTPUT_DIR", "DATASETS.TEST"}, row.name
        assert ours.DATASETS.TEST == ("coco_2017_val",)


@pytest.mark.parametrize("name, key", [("table1a_alpha", ALPHA), ("table1b_gamma", GAMMA)])
def test_the_figures_axis_is_what_the_rows_change(name, key):
    sweep = read_sweep(CONFIGS / "sweeps" / f"{name}.yaml")
    assert sweep.figure is not None
    assert [row.x for row in sweep.rows] == [row.overrides[key] for row in sweep.rows]


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_losses_without_a_word_on_weights_have_none(path):
    """FOCAL_LOSS_ALPHA weighs every loss, and is .25 where nobody sets it."""
    sweep = read_sweep(path)
    for row in sweep.rows:
        overrides = {**sweep.overrides, **row.overrides}
        if overrides.get(LOSS) in ("CrossEntropy", "OHEM"):
            assert (overrides[ALPHA] == -1) == ("α" not in row.name), row.name


@pytest.mark.parametrize("path", REAL_SWEEPS, ids=name_of)
def test_real_data_is_trained_on_train_tuned_on_val_and_tested_on_test(path):
    sweep, data = read_sweep(path), path.stem.removeprefix("real_")
    assert sweep.tuning is not None and sweep.tuning.key == "SOLVER.BASE_LR"
    assert sweep.tuning.datasets == [f"{data}_val"]
    for row in sweep.rows:
        cfg = row_config(sweep, row, base_of(path))
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        assert datasets == [f"{data}_train", f"{data}_test"]
    (command,) = commands(path)
    for split in ("train", "val", "test"):
        assert f"{data}_{split}=DATA/{data}/{split}.json:DATA/{data}/images" in command
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}, whose class counts these configs claim")
    categories = json.loads((DATA / data / "train.json").read_text())["categories"]
    assert sweep.overrides["MODEL.RETINANET.NUM_CLASSES"] == len(categories)
    assert (DATA / data / "images").is_dir()


def test_real_sweeps_compare_the_same_rows():
    cards, bccd = (read_sweep(CONFIGS / "sweeps" / f"real_{x}.yaml") for x in ("cards", "bccd"))
    assert cards.rows == bccd.rows
    assert cards.reference == bccd.reference
