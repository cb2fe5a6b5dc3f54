"""Whatever ends a training: its process and its data workers end too, in seconds, with a status."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from tiny_training import finish, metrics, start, train
from torch import nn

from focal_retina.engine import Trainer
from focal_retina.engine.checkpoint import is_intact
from focal_retina.evaluation import COCOEvaluator
from focal_retina.modeling import FocalRetinaNet


def fail(*args):
    raise RuntimeError("a mistake")


def worker_killed(*args):
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(1)


def corrupt_images(out, images):
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:-300])


def losses_are(function):
    """An act that puts ``function`` in the place of the model's losses."""
    return lambda *args: setattr(FocalRetinaNet, "losses", function)


# What happens in the folders of the training and of its images; the last line on the console
ACTS = {
    "error in the model": (losses_are(fail), "a mistake"),
    "error in a hook": (fail, "a mistake"),
    "error in the evaluation": (lambda *args: setattr(COCOEvaluator, "process", fail), "a mistake"),
    "loss that is not finite": (
        losses_are(lambda self, *args: {"loss_cls": self.head.cls_score.weight.sum() * torch.nan}),
        "loss is not finite at iteration 4",
    ),
    "worker killed": (worker_killed, "a data worker was killed"),
    "corrupt images": (corrupt_images, "jpg .image id .*truncated"),
    "full disk": (
        lambda out, images: Path(out, ".model_0000005.pth.tmp").symlink_to("/dev/full"),
        "the disk is full.*model_0000005.pth cannot be written",
    ),
    "one value per channel": (
        losses_are(lambda *args: nn.BatchNorm1d(2)(torch.ones(1, 2))),
        "set SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN higher",
    ),
    "out of memory": (losses_are(lambda *args: torch.empty(2**60)), "there is not enough memory"),
    "killed": (lambda *args: signal.raise_signal(signal.SIGKILL), ""),
}


def run(tiny_coco, out, num_workers, act):
    """``act`` in the main process in the midst of a training, when the data workers are busy."""

    class Act(HookBase):
        def before_step(self):
            if self.trainer.iter == 4:
                ACTS[act][0](out, tiny_coco[1])

    build_hooks = Trainer.build_hooks
    Trainer.build_hooks = lambda self: [*build_hooks(self), Act()]
    options = {"DATALOADER.NUM_WORKERS": num_workers, "SOLVER.MAX_ITER": 60, "TEST.EVAL_PERIOD": 0}
    return train(tiny_coco, out, options)


def train_without_objects(tiny_coco, out):
    forward = FocalRetinaNet.forward

    def forward_without_objects(self, batch):
        return forward(self, [{**x, "instances": x["instances"][:0]} for x in batch])

    FocalRetinaNet.forward = forward_without_objects
    return train(
        tiny_coco, out, {"SOLVER.MAX_ITER": 200, "TEST.EVAL_PERIOD": 0, "DATASETS.TEST": ()}
    )


@pytest.mark.slow
def test_200_batches_without_objects(tiny_coco, tmp_path):
    log = tmp_path / "log.txt"
    finish(start(train_without_objects, tiny_coco, tmp_path / "out", log=log), log)
    losses = [x["total_loss"] for x in metrics(tmp_path / "out")]
    assert len(losses) == 100 and max(losses) < 0.01  # NaN would be a string


def processes_that_write_to(log):
    """Those whose standard output it is."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            found |= {int(path.parts[2])} if path.samefile(log) else set()
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def wait_until_gone(log, seconds):
    end = time.monotonic() + seconds
    while processes_that_write_to(log) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes_that_write_to(log)


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("act", sorted(ACTS.keys() - {"killed"}))
def test_fatal_error(act, num_workers, tiny_coco, tmp_path):
    """In one line where the user can mend it, else with its traceback."""
    log, out = tmp_path / "log.txt", tmp_path / "out"
    message = ACTS[act][1]
    is_explained = message != "a mistake"
    process = start(run, tiny_coco, out, num_workers, act, log=log)
    process.join(timeout=60)
    assert process.exitcode == (2 if is_explained else 1), log.read_text()
    wait_until_gone(log, seconds=1)
    assert time.time() - log.stat().st_mtime < 5
    said = log.read_text()
    assert ("Traceback" in said) != is_explained, said
    assert re.search(message, said.strip().splitlines()[-1])
    # What was saved before is there, and nothing by halves.
    saved = {x.name for x in out.iterdir() if "model_" in x.name}
    assert (out / "last_checkpoint").read_text() == max(saved)
    assert all(is_intact(out / name) for name in saved)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_data_workers_end_with_a_killed_parent(num_workers, tiny_coco, tmp_path):
    log = tmp_path / "log.txt"
    process = start(run, tiny_coco, tmp_path / "out", num_workers, "killed", log=log)
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    wait_until_gone(log, seconds=5)
