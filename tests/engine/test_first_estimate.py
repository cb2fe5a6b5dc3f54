"""How long a training will take is told after its first iterations, once."""

import re

import pytest
from detectron2.engine import TrainerBase, hooks

from focal_retina.engine.resume import FirstEstimate


class _Steps(TrainerBase):
    def run_step(self):
        pass


@pytest.mark.parametrize("start, end, expected", [(0, 25, ["15"]), (90, 105, ["5"]), (0, 9, [])])
def test_one_line_with_what_is_left(start, end, expected, caplog):
    trainer = _Steps()
    trainer.register_hooks([hooks.IterationTimer(), FirstEstimate()])
    with caplog.at_level("INFO"):
        trainer.train(start, end)
    assert caplog.text.count(f"iteration {start + 1} of {end} is done") == 1
    assert re.findall(r"the other (\d+) iterations will take about \d", caplog.text) == expected
