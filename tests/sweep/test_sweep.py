"""A whole sweep, its trials taken as done."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from focal_retina import add_focal_retina_config
from focal_retina.sweep import CodeInputs, TrialResult, run_sweep
from focal_retina.sweep.grid import Row, Sweep

SWEEP = Sweep("table", "A table", "", "a", [Row("a", {}), Row("b", {"SOLVER.BASE_LR": 0.1})])


class DoneTrials:
    """A runner that finds every trial done, and can measure the loss of row a only."""

    inputs = CodeInputs()

    def __init__(self, root):
        self.root = root

    def run(self, trials, on_poll):
        return [
            TrialResult(t.row, t.seed, t.stage, t.tuned, "done", {"AP": 1.0}, directory=t.directory)
            for t in trials
        ]

    def measure_losses(self, results, script):
        assert [(x.row, x.seed) for x in results] == [("a", 3), ("b", 3)]
        return [x for x in results if x.row == "b"]


def test_a_loss_that_was_not_measured_is_told_after_the_report(tmp_path):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    with pytest.raises(ValueError, match=r"the loss was not measured of b: see .*console\.txt"):
        run_sweep(
            SWEEP,
            cfg,
            DoneTrials(tmp_path),
            [4, 3],
            command=["sweep.py"],
            base_config="base.yaml",
            loss_script=Path("analyze_loss.py"),
        )
    for name in ("results.json", "report.html"):
        assert (tmp_path / "table" / name).stat().st_size > 0
