"""Losses built by name, and α: one, one a class, or made from a training set's counts."""

import math
import re
from itertools import pairwise

import pytest
from helpers import ROOT, default_cfg, python
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from focal_retina.losses import CLS_LOSS_REGISTRY, balanced_alpha, build_cls_loss
from focal_retina.losses.alpha import count_objects


def test_loss_without_from_config_is_built_without_arguments(monkeypatch):
    monkeypatch.setitem(CLS_LOSS_REGISTRY._obj_map, "Mine", nn.Identity)
    cfg = default_cfg("MODEL.FOCAL_RETINA.CLS_LOSS.NAME", "Mine")
    assert type(build_cls_loss(cfg)) is nn.Identity


def test_the_documented_example_runs_outside_the_package(tmp_path):
    """docs/add_a_loss.md, to the letter: its files in an empty folder, its script as a process."""
    page = (ROOT / "docs" / "add_a_loss.md").read_text()
    files = re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in files] == ["poly_loss.py", "poly.yaml", "try_poly.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    run = python("try_poly.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    printed = re.search(r"prints\n\n```\n(.*?)```", page, flags=re.DOTALL)[1]
    assert run.stdout == printed


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


@given(
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=30),
    alpha=st.floats(0.01, 0.99),
    factor=st.integers(2, 9),
)
def test_laws_of_balanced_alpha(counts, alpha, factor):
    alphas = balanced_alpha(counts, alpha)
    assert all(0 < a < 1 for a in alphas)
    # The rarer, the heavier
    by_count = sorted(zip(counts, alphas, strict=True))
    assert all(a >= b - 1e-12 for (_, a), (_, b) in pairwise(by_count))
    # The geometric mean of the odds is that of the scalar
    assert sum(map(log_odds, alphas)) / len(alphas) == pytest.approx(log_odds(alpha), abs=1e-6)
    # More images of the same kind change nothing
    assert balanced_alpha([factor * n for n in counts], alpha) == pytest.approx(alphas, rel=1e-9)


def test_crowds_do_not_count_and_a_class_out_of_range_is_an_error():
    objects = [{"category_id": k} for k in (0, 2, 2, 2)]
    records = [{"annotations": [*objects, {"category_id": 2, "iscrowd": 1}]}, {"annotations": []}]
    assert count_objects(records, 4) == [1, 0, 3, 0]
    with pytest.raises(ValueError, match=r"classes \[2\], but MODEL.RETINANET.NUM_CLASSES is 2"):
        count_objects(records, 2)


def test_balanced_alpha_refuses_what_it_cannot_weigh():
    with pytest.raises(ValueError, match=r"classes \[1, 3\] of 4 have no object"):
        balanced_alpha([5, 0, 2, 0], 0.25)
    for alpha in (-1.0, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"within \(0, 1\)"):
            balanced_alpha([1, 2], alpha)


def test_config_asks_for_class_alphas_and_its_errors_name_the_key():
    cfg = default_cfg("MODEL.RETINANET.NUM_CLASSES", 2)
    node = cfg.MODEL.FOCAL_RETINA.CLS_LOSS
    assert build_cls_loss(cfg).alpha == 0.25
    node.CLASS_ALPHA = [0.1, 0.9]
    assert build_cls_loss(cfg).alpha.tolist() == pytest.approx([0.1, 0.9])
    node.CLASS_ALPHA = "auto"  # odds 1/3 of α = .25, times and over (16)^(1/4) = 2: 2/3 and 1/6
    assert build_cls_loss(cfg, [100, 1600]).alpha.tolist() == pytest.approx([2 / 5, 1 / 7])
    for value, counts, message in (
        ("auto", None, "is 'auto'.*class_counts"),
        ("auto", [1, 2, 3], "has 3 values, but MODEL.RETINANET.NUM_CLASSES is 2"),
        ([0.5], None, "has 1 values"),
        ("inverse", None, "is 'inverse'"),
        (0.3, None, "is 0.3: give"),
        ([0.5, "x"], None, "is \\[0.5, 'x'\\]: give"),
    ):
        node.CLASS_ALPHA = value
        with pytest.raises(ValueError, match=f"MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA {message}"):
            build_cls_loss(cfg, counts)
