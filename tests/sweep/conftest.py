"""Trials of a script that stands in for the training."""

from pathlib import Path

import pytest
import yaml

from focal_retina.sweep.plan import CodeInputs, Trial
from focal_retina.sweep.runner import TrialRunner

MAX_ITER = 10


@pytest.fixture
def make_trial():
    def make(name, behaviour="", seed=1):
        solver = {"MAX_ITER": MAX_ITER}
        return Trial(
            row=name,
            seed=seed,
            stage="test",
            tuned=None,
            config_yaml=yaml.safe_dump(
                {"MODEL": {"WEIGHTS": behaviour}, "SOLVER": solver, "SEED": seed}
            ),
            config_hash=f"{name:0<64}",
            directory=f"trials/{name}-{name:0<8.8}",
            max_iter=MAX_ITER,
            test_dataset="val",
        )

    return make


@pytest.fixture
def make_runner(tmp_path):
    script = Path(__file__).with_name("fake_train.py")

    def make(**options):
        options = {"inputs": CodeInputs(), "git_commit": "c0ffee", "poll_seconds": 0.1, **options}
        return TrialRunner(root=tmp_path, train=[script], measure_loss=[script], **options)

    return make
