"""Trials of a script that stands in for the training."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from focal_retina.sweep.grid import CodeInputs, Trial
from focal_retina.sweep.runner import TrialRunner


@pytest.fixture
def make_trial():
    def make(name, behaviour="", seed=1):
        cfg = CfgNode({"MODEL": {"WEIGHTS": behaviour}, "SOLVER": {"MAX_ITER": 10}, "SEED": seed})
        cfg.DATASETS = CfgNode({"TEST": ("val",)})
        return Trial(name, seed, "test", None, cfg, f"{name:0<64}", f"trials/{name}-{name:0<8.8}")

    return make


@pytest.fixture
def make_runner(tmp_path):
    script = Path(__file__).with_name("fake_train.py")

    def make(**options):
        options = {"inputs": CodeInputs(), "git_commit": "c0ffee", "poll_seconds": 0.1, **options}
        return TrialRunner(root=tmp_path, train=[script], measure_loss=[script], **options)

    return make
