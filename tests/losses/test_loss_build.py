import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from focal_retina.losses import (
    CLS_LOSS_REGISTRY,
    OHEM,
    CrossEntropy,
    FocalLoss,
    FocalLossStar,
    build_cls_loss,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registered():
    """Register a class for the time of a test."""
    names = []

    def register(loss_class):
        CLS_LOSS_REGISTRY.register(loss_class)
        names.append(loss_class.__name__)

    yield register
    for name in names:
        del CLS_LOSS_REGISTRY._obj_map[name]


@pytest.mark.parametrize("loss_class", [CrossEntropy, FocalLoss, FocalLossStar, OHEM])
def test_builds_by_name(cfg, loss_class):
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME = loss_class.__name__
    assert type(build_cls_loss(cfg)) is loss_class


def test_default_is_detectron2s_loss(cfg):
    loss = build_cls_loss(cfg)
    assert (type(loss), loss.alpha, loss.gamma) == (FocalLoss, 0.25, 2.0)


def test_unknown_name_lists_the_known_ones(cfg):
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME = "FocalLos"
    with pytest.raises(
        ValueError, match="'FocalLos'.*CrossEntropy, FocalLoss, FocalLossStar, .*OHEM"
    ):
        build_cls_loss(cfg)


def test_loss_without_from_config_is_built_without_arguments(cfg, registered):
    class Squared(nn.Module):
        def forward(self, logits, labels):
            return sum(x.square().sum() for x in logits), None

    registered(Squared)
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME = "Squared"
    total, count = build_cls_loss(cfg)([torch.ones(1, 2, 3)], [torch.zeros(1, 2)])
    assert total == 6 and count is None


def test_the_documented_example_runs_outside_the_package(tmp_path):
    """docs/add_a_loss.md, to the letter: its files in an empty folder, its script as a process."""
    page = (ROOT / "docs" / "add_a_loss.md").read_text()
    files = re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in files] == ["poly_loss.py", "poly.yaml", "try_poly.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    run = subprocess.run(
        [sys.executable, "try_poly.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    printed = re.search(r"prints\n\n```\n(.*?)```", page, flags=re.DOTALL)[1]
    assert run.stdout == printed
