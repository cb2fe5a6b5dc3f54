"""Configs are read, never executed."""

import pytest
from detectron2.config import CfgNode, get_cfg
from helpers import ZOO, default_cfg
from hypothesis import given
from hypothesis import strategies as st

from focal_retina import get_config_file, merge_config_file
from focal_retina.config_file import merge_options

EVAL = "!!python/object/apply:eval"


def write(path, text):
    path.write_text(text)
    return str(path)


def load(path, text):
    """KEY, and what is below X, of a yaml."""
    cfg = CfgNode({"VERSION": 2, "KEY": None, "X": {"a": 0, "b": 0, "c": 0}})
    merge_config_file(cfg, write(path, text))
    return cfg


def test_zoo_file_is_read_as_detectron2s_unsafe_loader_reads_it():
    expected, actual = get_cfg(), get_cfg()
    expected.merge_from_file(ZOO)
    merge_config_file(actual, ZOO)
    assert actual == expected
    assert len(actual.MODEL.ANCHOR_GENERATOR.SIZES) == 5


@pytest.mark.parametrize(
    "expression, value",
    [
        ("[2**3, -1, 7//2, 1/4]", [8, -1, 3, 0.25]),
        ("[[x, x * 2**(1.0/2)] for x in [32, 64]]", [[32, 32 * 2**0.5], [64, 64 * 2**0.5]]),
        ("[x + y for x in [1, 2]]", None),
        ("[[x for y in [1, 2]] for x in [1, 2]]", None),
        ("((9**60)**60)**60", None),
        ("+".join(["1"] * 1000), None),
        ("__import__('os').system('true')", None),
        ("9**9**9**9", None),
        ("[x for x in [1] if x]", None),
        ("'a' * 9", None),
        ("[0] * 9", None),
        ("1/0", None),
        ("1 +", None),
    ],
)
def test_eval_tag_is_arithmetic_and_nothing_else(tmp_path, expression, value):
    text = f'KEY: {EVAL} ["{expression}"]'
    if value is not None:
        assert value == load(tmp_path / "c.yaml", text).KEY
    else:
        with pytest.raises(ValueError, match="not plain arithmetic"):
            load(tmp_path / "c.yaml", text)


@given(
    st.recursive(
        st.floats(-10, 10).map(repr),  # so that 8 of them stay below the limit, 1e9
        lambda e: st.tuples(e, st.sampled_from("+-*"), e).map("({0[0]} {0[1]} {0[2]})".format),
        max_leaves=8,
    )
)
def test_arithmetic_equals_pythons(tmp_path_factory, expression):
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    assert eval(expression) == load(path, f'KEY: {EVAL} ["{expression}"]').KEY


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system", "!custom 1"],
)
def test_other_tags_are_refused_and_do_not_run(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="could not determine a constructor"):
        load(tmp_path / "c.yaml", f"KEY: {tag}")
    assert not (tmp_path / "hacked").exists()


def test_base_files_merge_in_order_and_the_file_wins(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.yaml", "X: {a: 1, b: 1, c: 1}")
    write(tmp_path / "b.yaml", "X: {b: 2, c: 2}")
    text = "_BASE_: [../a.yaml, ../b.yaml]\nX: {c: 3}"
    assert load(tmp_path / "sub" / "c.yaml", text).X == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "text, message",
    [
        ("- 1", "not of type list"),
        ("A: [1", "not a config that can be read"),
        ("1: 2", "the key 1 is not text"),
        ("A: " + "[" * 3000 + "]" * 3000, "recursion"),
        ("A: &a [*a]", "more than 100000 values"),
        ("A: 2020-99-99", "month"),
        ("_BASE_: x/../c.yaml", "circle"),
        ("_BASE_:", "_BASE_ is None"),
        ("_BASE_: [1]", r"_BASE_ is \[1\]"),
        ("_BASE_: none.yaml", "none.yaml does not exist"),
        ("MODEL: {RETINANET: {NUM_CLASES: 1}}", "near: MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL: {RETINANET: {NUM_CLASSES: many}}", "NUM_CLASSES is of type int, not str"),
        ("MODEL: 3", "MODEL is of type section, not int"),
        ("VERSION: 1", "version 1"),
    ],
)
def test_errors_are_one_line_with_the_file(tmp_path, text, message):
    (tmp_path / "x").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        merge_config_file(default_cfg(), write(tmp_path / "c.yaml", text))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_whole_number_is_a_float_where_one_is_meant(tmp_path):
    cfg = default_cfg()
    merge_config_file(cfg, write(tmp_path / "c.yaml", "MODEL: {RETINANET: {PRIOR_PROB: 1}}"))
    merge_options(cfg, ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1", "SOLVER.BASE_LR", 2])
    node = cfg.MODEL.RETINANET
    values = node.FOCAL_LOSS_ALPHA, node.PRIOR_PROB, cfg.SOLVER.BASE_LR
    assert values == (-1.0, 1.0, 2.0) and {type(x) for x in values} == {float}


def test_get_config_file_lists_what_there_is():
    assert get_config_file("quickstart/shapes.yaml").endswith("configs/quickstart/shapes.yaml")
    with pytest.raises(FileNotFoundError, match="quickstart/shapes.yaml"):
        get_config_file("quickstart/shapes_R19.yaml")
