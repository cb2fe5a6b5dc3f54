"""Which trials a sweep has, and what tells their results apart."""

from dataclasses import replace

import pytest
from detectron2.config import get_cfg

from focal_retina import add_focal_retina_config
from focal_retina.sweep.grid import Row, Sweep, Tuning
from focal_retina.sweep.plan import CodeInputs, plan_tests, plan_tuning

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
def cfg():
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.DATASETS.TEST = ("test",)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 50.0, 1.0]]
    cfg.freeze()
    return cfg


def test_tuning_and_test_do_not_share_seeds_nor_data(cfg):
    tuning = plan_tuning(SWEEP, cfg, CodeInputs())
    tests = plan_tests(SWEEP, cfg, CodeInputs(), range(1, 4), {"CE": 0.1, "FL, γ 2": 0.2})
    assert len(tuning) == 2 * 2 * 2
    assert len(tests) == 2 * 3
    assert not {x.seed for x in tuning} & {x.seed for x in tests}
    assert {x.cfg.DATASETS.TEST for x in tuning} == {("val",)}
    assert {x.cfg.DATASETS.TEST for x in tests} == {("test",)}
    assert {(x.row, x.cfg.SOLVER.BASE_LR) for x in tests} == {("CE", 0.1), ("FL, γ 2", 0.2)}
    assert len({x.directory for x in [*tuning, *tests]}) == len(tuning) + len(tests)


def test_a_trial_is_the_base_with_its_rows_overrides_and_seed(cfg):
    trial = plan_tests(SWEEP, cfg, CodeInputs(), [7])[1]
    expected = cfg.clone()
    expected.defrost()
    expected.merge_from_list([GAMMA, 2.0, "SEED", 7, "TEST.EXPECTED_RESULTS", []])
    expected.SOLVER.CHECKPOINT_PERIOD = min(5000, cfg.SOLVER.MAX_ITER // 5)
    assert trial.cfg == expected


def test_hash_is_of_everything_that_changes_the_numbers(cfg, tmp_path):
    def digest(inputs=NO_INPUTS, **changes):
        base = cfg.clone()
        base.defrost()
        for key, value in changes.items():
            base.merge_from_list([key.replace("__", "."), value])
        return plan_tests(SWEEP, base, inputs, [1])[0].config_hash

    loss = tmp_path / "loss.py"
    loss.write_text("a = 1")
    hashes = [digest(), digest(SOLVER__MOMENTUM=0.5), digest(CodeInputs(register=("a=b:c",)))]
    hashes.append(digest(CodeInputs(imports=(str(loss),))))
    loss.write_text("a = 2")
    hashes.append(digest(CodeInputs(imports=(str(loss),))))
    assert len(set(hashes)) == 5
    assert digest(OUTPUT_DIR="elsewhere") == hashes[0]


def test_a_row_with_an_unknown_key_is_named(cfg):
    wrong = replace(SWEEP, rows=[Row("CE", {"MODEL.NO_SUCH": 1})])
    with pytest.raises(ValueError, match=r"row 'CE' of table: MODEL.NO_SUCH 1"):
        plan_tests(wrong, cfg, CodeInputs(), [1])
