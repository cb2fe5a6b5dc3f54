"""A training that is killed and resumed is the uninterrupted one, bit for bit."""

import io
import os
import random
import signal
import socket
import time
from functools import partial

import pytest
import torch
from detectron2.engine import SimpleTrainer
from tiny_training import ALL_ON, AVERAGED, assert_same_run, finish, metrics, start, train

from focal_retina.engine import Trainer, checkpoint, only_training_in


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def send(signum, iteration):
    """The process sends itself a signal in the midst of an iteration."""
    write_metrics = SimpleTrainer._write_metrics

    def write_and_send(self, *args, **kwargs):
        write_metrics(self, *args, **kwargs)
        if self.iter == iteration:
            os.kill(os.getpid(), signum)

    SimpleTrainer._write_metrics = write_and_send


kill_in_first_step = partial(send, signal.SIGKILL, 1)
terminate = partial(send, signal.SIGTERM, 8)
interrupt = partial(send, signal.SIGINT, 9)


def kill_in_half_a_checkpoint():
    save = torch.save

    def save_half(data, file):
        if not isinstance(data, dict) or data["iteration"] < 5:
            return save(data, file)
        buffer = io.BytesIO()
        save(data, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        return kill()

    checkpoint.torch.save = save_half


def kill_before_the_checkpoint_is_tagged():
    replace = os.replace

    def replace_and_kill(source, target):
        replace(source, target)
        if target.name == "model_0000005.pth":
            kill()

    checkpoint.os.replace = replace_and_kill


def kill_between_the_last_two_checkpoints():
    """Of iteration 11 there are a numbered one and model_final.pth."""
    save = checkpoint.SafeCheckpointer.save
    checkpoint.SafeCheckpointer.save = lambda self, name, **state: (
        kill() if name == "model_final" else save(self, name, **state)
    )


def kill_in_evaluation():
    """Of iteration 7, of which, with one every 4, there is a checkpoint."""
    evaluate = Trainer._evaluate

    def evaluate_or_die(self):
        if self.iter == 7:
            kill()
        return evaluate(self)

    Trainer._evaluate = evaluate_or_die


def kill_in_last_evaluation():
    Trainer.test = lambda *args: kill()


def interrupt_in_evaluation():
    def test(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    Trainer.test = test


def interrupt_twice():
    send(signal.SIGINT, 0)
    send(signal.SIGINT, 0)


@pytest.fixture
def training(tiny_coco, tmp_path):
    """Run a training to its end in another process; a log beside it."""
    logs = tmp_path / "log.txt"

    def call(out, *, status=0, **options):
        process = start(train_with, tiny_coco, tmp_path / out, options, log=logs)
        finish(process, logs, status)
        return logs.read_text()

    return call


def train_with(tiny_coco, out, options):
    return train(tiny_coco, out, **options)


def test_killed_runs_go_on_exactly(training, tmp_path):
    """One run, killed at the worst moments one after the other, beside one that is left alone."""
    training("expected", options=AVERAGED)
    plants = [
        (kill_in_first_step, {}),
        (kill_in_half_a_checkpoint, {}),
        (kill_before_the_checkpoint_is_tagged, {}),
        (kill_in_evaluation, {"SOLVER.CHECKPOINT_PERIOD": 4}),
        (kill_between_the_last_two_checkpoints, {}),
        (kill_in_last_evaluation, {}),
    ]
    for plant, options in plants:
        options = {**AVERAGED, **options}
        training("out", before=plant, options=options, status=-signal.SIGKILL)
    said = training("out", options={**AVERAGED, "DATALOADER.NUM_WORKERS": 2})
    assert_same_run(tmp_path / "out", tmp_path / "expected")
    iterations = [x["iteration"] for x in metrics(tmp_path / "out")]
    assert sorted(set(iterations)) == sorted(iterations)
    assert not list((tmp_path / "out").glob("*.tmp"))

    # The average of the weights is what was evaluated, and what a reader of the file gets.
    final = tmp_path / "out" / "model_final.pth"
    state, name = torch.load(final, weights_only=True), "head.cls_score.weight"
    assert not torch.equal(
        state["model"][name], state["trainer"]["hooks"]["WeightAverage"]["model"][name]
    )
    evaluation = {"options": {**AVERAGED, "MODEL.WEIGHTS": final}, "flag": "--eval-only"}
    lines = [x for x in said.splitlines() if "validation loss on tiny" in x]
    assert lines[-1][-30:] in training("out", **evaluation)


def test_stopped_runs_say_so_and_go_on_exactly(training, tmp_path):
    said = training("expected")
    assert "the training starts anew" in said and "iteration 1 of 12 is done" in said
    assert "the other 2 iterations will take about 0:00:0" in said
    training("out", before=interrupt_twice, status=-signal.SIGINT)
    training("out", before=interrupt_in_evaluation, status=130)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"
    # The raw weights go their way with and without an average.
    average = {"MODEL.FOCAL_RETINA.EMA_DECAY": 0.8}
    said = training("out", before=terminate, options=average, status=0)
    assert "finishing this iteration, then saving" in said and "--resume goes on" in said
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000008.pth"
    training("out", before=interrupt, status=130)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000009.pth"

    # The disk lost the end of the last checkpoint, and the one before it is taken.
    (tmp_path / "out" / "model_0000009.pth").write_bytes(b"PK\x03\x04")
    said = training("out", before=interrupt_in_evaluation, status=130)
    assert "model_0000009.pth is damaged" in said
    training("out")
    assert_same_run(tmp_path / "out", tmp_path / "expected")


def torchrun_environment(rank, port):
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes, **place}


def test_two_processes_are_one_of_twice_the_batch(tiny_coco, training, tmp_path):
    """To 1e-5 in every loss; stopped through one of them, and resumed, on the way; out of patience
    after two evaluations, as there are no large objects."""
    # Statistics of a batch and padding to its largest image differ by process.
    options = {"MODEL.RESNETS.NORM": "FrozenBN", "INPUT.MIN_SIZE_TRAIN": (64,), "SEED": 1}
    options |= {"SOLVER.BASE_LR": 0.001, "SOLVER.IMS_PER_BATCH": 4}
    options |= {"MODEL.FOCAL_RETINA.EMA_DECAY": 0.8, "TEST.LOSS": True}
    options |= {"TEST.KEEP_BEST": "bbox/APl", "TEST.PATIENCE": 2, "TEST.EVAL_PERIOD": 5}
    training("expected", options=options)
    options["SOLVER.ACCUMULATE"] = 2  # of one image each
    for plant in (terminate, None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = {}
        for rank in range(2):
            log = tmp_path / f"log{rank}.txt"
            how = {"options": options, "before": plant if rank == 1 else None}
            how["environment"] = torchrun_environment(rank, port)
            processes[log] = start(train_with, tiny_coco, tmp_path / "out", how, log=log)
        for log, process in processes.items():
            finish(process, log)
    expected, found = metrics(tmp_path / "expected"), metrics(tmp_path / "out")
    assert [x["iteration"] for x in found] == [x["iteration"] for x in expected]
    assert found[-1]["iteration"] == 9
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("total_loss", "loss_cls", "loss_box_reg", "validation/total_loss"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {**ALL_ON, "TEST.PATIENCE": 9}], ids=["plain", "all on"])
def test_killed_at_twenty_random_moments(tiny_coco, training, tmp_path, options):
    begin = time.monotonic()
    training("expected", options=options)
    seconds = time.monotonic() - begin
    generator = random.Random(0)
    log, how = tmp_path / "log.txt", {"options": options}
    for _ in range(20):
        process = start(train_with, tiny_coco, tmp_path / "out", how, log=log)
        process.join(generator.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.join()
    training("out", options=options)
    assert_same_run(tmp_path / "out", tmp_path / "expected")


def test_changes_at_resume_are_obeyed_or_refused(training, tmp_path):
    options = {"SEED": -1}
    training("out", options=options, before=terminate)
    seed = load_seed(tmp_path / "out" / "model_0000008.pth")
    config = (tmp_path / "out" / "config.yaml").read_text()
    for key, value in {"SEED": 3, "MODEL.FOCAL_RETINA.OPTIMIZER": "AdamW"}.items():
        said = training("out", options={**options, key: value}, status=2)
        assert f"--resume cannot change {key} " in said.splitlines()[-1]
        assert (tmp_path / "out" / "config.yaml").read_text() == config
    said = training("out", options={**options, "SOLVER.WEIGHT_DECAY_BIAS": 0.001}, status=2)
    assert "cannot regroup the parameters" in said.splitlines()[-1]
    said = training("out", options={**options, "MODEL.FPN.OUT_CHANNELS": 16}, status=2)
    assert "another shape" in said.splitlines()[-1]
    options |= {"SOLVER.BASE_LR": 0.001, "SOLVER.MOMENTUM": 0.5, "SOLVER.IMS_PER_BATCH": 4}
    said = training("out", options=options)
    assert "SOLVER.BASE_LR 0.01 → 0.001" in said and "IMS_PER_BATCH 2 → 4" in said
    assert load_seed(tmp_path / "out" / "model_final.pth") == seed
    # After the step of the learning rate at iteration 8
    rates = [x["lr"] for x in metrics(tmp_path / "out") if x["iteration"] > 8 and "lr" in x]
    assert rates == pytest.approx([1e-4] * 2)
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["trainer"]
    assert final["_trainer"]["optimizer"]["param_groups"][0]["momentum"] == 0.5


def test_one_training_a_folder(training, tmp_path):
    (tmp_path / "out").mkdir()
    with only_training_in(tmp_path / "out"):
        said = training("out", status=2)
    assert f"in use by another training, process {os.getpid()} on " in said.splitlines()[-1]
    assert [x.name for x in (tmp_path / "out").iterdir()] == [".lock"]


def test_ctrl_c_in_an_evaluation_alone_promises_nothing(training, tmp_path):
    training("out", options={"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    options = {"MODEL.WEIGHTS": tmp_path / "out" / "model_final.pth"}
    evaluation = {"options": options, "flag": "--eval-only"}
    said = training("out", before=interrupt_in_evaluation, **evaluation, status=130)
    assert said.splitlines()[-1].endswith(": interrupted")


def load_seed(path):
    return torch.load(path, weights_only=True)["trainer"]["data_loader"]["seed"]
