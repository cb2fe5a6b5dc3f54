"""Configs are read, never executed."""

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from helpers import default_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina import get_config_file, merge_config_file
from focal_retina.config_file import load_yaml_with_base


def write(path, text):
    path.write_text(text)
    return str(path)


def test_zoo_file_is_read_as_detectron2s_unsafe_loader_reads_it():
    path = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    expected = get_cfg()
    expected.merge_from_file(path)
    actual = get_cfg()
    merge_config_file(actual, path)
    assert actual == expected
    assert len(actual.MODEL.ANCHOR_GENERATOR.SIZES) == 5


@pytest.mark.parametrize(
    "expression, value",
    [
        ("[2**3, -1, 7//2, 1/4]", [8, -1, 3, 0.25]),
        (
            "[[x, x * 2**(1.0/3)] for x in [32, 64]]",
            [[32, 32 * 2 ** (1 / 3)], [64, 64 * 2 ** (1 / 3)]],
        ),
        ("[x + y for x in [1, 2]]", None),
        ("__import__('os').system('true')", None),
        ("().__class__", None),
        ("9**9**9**9", None),
        ("[x for x in [1] if x]", None),
        ("'a' * 9", None),
        ("[0] * 9", None),
        ("1/0", None),
        ("1 +", None),
    ],
)
def test_eval_tag_is_arithmetic_and_nothing_else(tmp_path, expression, value):
    path = write(tmp_path / "c.yaml", f'KEY: !!python/object/apply:eval ["{expression}"]')
    if value is not None:
        assert load_yaml_with_base(path) == {"KEY": value}
    else:
        with pytest.raises(ValueError, match="not plain arithmetic"):
            load_yaml_with_base(path)


@given(
    st.recursive(
        st.floats(-1e3, 1e3).map(repr),
        lambda e: st.tuples(e, st.sampled_from("+-*"), e).map("({0[0]} {0[1]} {0[2]})".format),
    )
)
@settings(deadline=None, max_examples=50)
def test_arithmetic_equals_pythons(tmp_path_factory, expression):
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(f'KEY: !!python/object/apply:eval ["{expression}"]')
    assert load_yaml_with_base(str(path))["KEY"] == eval(expression)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system", "!custom 1"],
)
def test_other_tags_are_refused_and_do_not_run(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="could not determine a constructor"):
        load_yaml_with_base(write(tmp_path / "c.yaml", f"KEY: {tag}"))
    assert not (tmp_path / "hacked").exists()


def test_base_files_merge_in_order_and_the_file_wins(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.yaml", "X: {a: 1, b: 1, c: 1}")
    write(tmp_path / "b.yaml", "X: {b: 2, c: 2}")
    path = write(tmp_path / "sub" / "c.yaml", "_BASE_: [../a.yaml, ../b.yaml]\nX: {c: 3}")
    assert load_yaml_with_base(path) == {"X": {"a": 1, "b": 2, "c": 3}}


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("- 1", ValueError, "holds list"),
        ("", ValueError, "holds NoneType"),
        ("A: [1", ValueError, "not a config that can be read"),
        ("_BASE_: c.yaml", ValueError, "circle"),
        ("_BASE_: none.yaml", FileNotFoundError, "none.yaml"),
        ("MODEL: {NO_SUCH_KEY: 1}", KeyError, "NO_SUCH_KEY"),
        ("MODEL: {RETINANET: {NUM_CLASSES: many}}", ValueError, "NUM_CLASSES"),
        ("VERSION: 1", ValueError, "version 1"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        merge_config_file(default_cfg(), write(tmp_path / "c.yaml", text))


def test_get_config_file_lists_what_there_is():
    assert get_config_file("quickstart/shapes.yaml").endswith("configs/quickstart/shapes.yaml")
    with pytest.raises(FileNotFoundError, match="quickstart/shapes.yaml"):
        get_config_file("quickstart/shapes_R19.yaml")
