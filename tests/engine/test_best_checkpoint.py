"""The best checkpoint, patience, and how many checkpoints stay; all of them through kills."""

import contextlib
import math
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import EventStorage
from helpers import default_cfg
from hypothesis import given
from hypothesis import strategies as st
from test_exact_resume import kill, send, train_with
from tiny_training import ALL_ON, assert_same_run, finish, start
from torch import nn

from focal_retina.config_file import merge_options
from focal_retina.engine import Trainer, config_checks
from focal_retina.engine.checkpoint import SafeCheckpointer
from focal_retina.engine.console import ProgressPrinter
from focal_retina.engine.hooks import BestCheckpoint, Patience
from focal_retina.engine.launch_and_interrupt import Interrupted


class Loop(TrainerBase):
    """Detectron2's loop with these hooks; an evaluation every 2 iterations gives an AP of a list.
    It goes on from the ``state`` before an evaluation as the trainer does."""

    def __init__(self, precisions, patience, state=None):
        super().__init__()
        self.states, self.state = [], state
        self.checkpointer = SimpleNamespace(save=lambda name, iteration: None)
        evaluation = hooks.EvalHook(2, lambda: {"bbox": {"AP": precisions[(self.iter - 1) // 2]}})
        self.best = BestCheckpoint(2, self.checkpointer, "bbox/AP")
        ends = [Patience(patience, self.best, evaluation)] if patience else []
        self.register_hooks([evaluation, self.best, *ends])
        with contextlib.suppress(Interrupted):
            self.train(state["iteration"] + 1 if state else 0, 2 * len(precisions))

    def before_train(self):
        if self.state:
            self.load_state_dict(self.state)
            self.storage.iter = self.iter
            TrainerBase.after_step(self)

    def run_step(self):
        pass

    def after_step(self):
        self.states.append(self.state_dict())
        super().after_step()


@given(st.lists(st.sampled_from([0, 1, 2, 30, math.nan]), min_size=1), st.integers(0, 3), st.data())
def test_patience_is_counted_right_through_a_kill(precisions, patience, data):
    best, best_iter, num_worse, end = -1, None, 0, 2 * len(precisions)
    for iteration, precision in zip(range(1, end, 2), precisions, strict=True):
        if precision > best:
            best, best_iter, num_worse = precision, iteration, 0
        else:
            num_worse += 1
        if num_worse == patience > 0:
            end = iteration + 1
            break
    loop = Loop(precisions, patience)
    resumed = Loop(precisions, patience, data.draw(st.sampled_from(loop.states)))
    for x in (loop, resumed):
        # Detectron2 makes the last evaluation after the end, of which it is the iteration.
        found = min(x.best.best_iter, 2 * len(precisions) - 1) if x.best.best_iter else None
        assert (x.iter, x.max_iter, found) == (end, end, best_iter)
        assert x.best.best_metric == (best if best >= 0 else None)


@pytest.mark.parametrize(
    "words, message",
    [
        ("TEST.PATIENCE 2", "set TEST.KEEP_BEST"),
        ("TEST.KEEP_BEST bbox/AP TEST.EVAL_PERIOD 0", "set .*TEST.EVAL_PERIOD"),
        ("TEST.KEEP_BEST bbox/AP60", "'bbox/AP60'; .* bbox/AP50, "),
        ("TEST.KEEP_BEST bbox/AP-emu", "bbox/AP-person, bbox/AP-bird"),
        ("TEST.KEEP_BEST bbox/AP DATASETS.TEST ('a','b')", "a/bbox/AP, .* b/bbox/AP"),
        ("TEST.KEEP_BEST bbox/AP-bird", None),
        ("TEST.KEEP_BEST b/bbox/APs DATASETS.TEST ('a','b') TEST.PATIENCE 3", None),
    ],
)
def test_what_no_evaluation_gives_is_an_error_at_the_start(words, message, monkeypatch):
    monkeypatch.setattr(config_checks, "dataset_classes", lambda name: ["person", "bird"])
    cfg = default_cfg("DATASETS.TEST", ("a",), "TEST.EVAL_PERIOD", 5)
    merge_options(cfg, words.split())
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        config_checks.check_best(cfg)


@pytest.mark.parametrize("num_kept", [-1, 1, 2])
def test_the_last_intact_checkpoints_stay(tmp_path, num_kept):
    def save(name):  # by a process of its own
        checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))
        checkpointer.num_kept = num_kept
        checkpointer.save(name)

    for name in ("model_0000001", "model_best", "model_0000003", "model_0000005", "model_final"):
        save(name)
    (tmp_path / "model_0000009.pth").touch()  # of a run before, that was longer
    (tmp_path / "model_0000005.pth").write_bytes(b"PK damaged")
    save("model_0000007")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"
    (tmp_path / "model_0000007.pth").write_bytes(b"PK damaged")
    save("model_0000008")
    stay = {-1: "13578", 1: "8", 2: "3578"}[num_kept]
    expected = {f"model_000000{x}" for x in [*stay, "9"]} | {"model_best", "model_final"}
    assert {x.stem for x in tmp_path.glob("*.pth")} == expected


def kill_in_last_evaluation_before_the_end():
    evaluate = Trainer._evaluate
    Trainer._evaluate = lambda self: kill() if self.iter == 5 else evaluate(self)


def kill_when_finished():
    Trainer.after_train = lambda self: kill()


def test_killed_runs_with_all_of_it_go_on_exactly(tiny_coco, tmp_path):
    """AP stays 0, so that the third of the evaluations, at iteration 6, ends the training."""
    log = tmp_path / "log.txt"

    def run(out, before=None, status=0):
        how = {"options": ALL_ON, "before": before}
        finish(start(train_with, tiny_coco, tmp_path / out, how, log=log), log, status)
        return log.read_text()

    assert "the training is finished after 6 iterations" in run("expected")
    log.unlink()
    kills = [partial(send, signal.SIGKILL, 3), kill_in_last_evaluation_before_the_end]
    for before in [*kills, kill_when_finished]:
        said = run("out", before, status=-signal.SIGKILL)
    assert said.count("the training is finished after 6 iterations") == 1
    assert "the training is finished after 6 iterations" in run("out")
    assert_same_run(tmp_path / "out", tmp_path / "expected")
    for out in ("out", "expected"):
        names = {x.name for x in (tmp_path / out).glob("*.pth")}
        assert names == {"model_0000005.pth", "model_best.pth", "model_final.pth"}
    best = [
        torch.load(tmp_path / x / "model_best.pth", weights_only=True) for x in ("out", "expected")
    ]
    assert [x["iteration"] for x in best] == [1, 1]
    assert all(torch.equal(x, best[1]["model"][name]) for name, x in best[0]["model"].items())


def test_progress_is_a_line_with_the_scores_so_far(caplog):
    caplog.set_level("INFO", "focal_retina")
    printer = ProgressPrinter(10)
    with EventStorage(0) as storage:
        for iteration in range(3):
            storage.iter = iteration
            storage.put_scalars(total_loss=iteration, loss_cls=0.1, time=2.0)
        printer.write()
        scores = {"bbox/AP": 12.34, "bbox/AP50": 20, "best/bbox/AP": 40, "b/bbox/AP": math.nan}
        storage.put_scalars(**scores, smoothing_hint=False)
        printer.write()
        storage.iter = 3  # the end, whose numbers stand in tables
        printer.write()
    begin = "iteration 3 of 10, 0:00:14 left, loss 1"
    scores = "AP 12.3, best/AP 40, b/AP nan"
    progress = [x.message for x in caplog.records if x.name.endswith("progress")]
    assert progress == [begin, f"{begin}, {scores}"]
