"""A training of a few seconds, for tests that kill it: run in processes of their own.

They come from a fork server that has imported everything once, so that one costs a fork, and has
no threads or state of the test process.
"""

import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
from detectron2.utils import collect_env
from torch.utils._pytree import keystr, tree_flatten_with_path

from focal_retina.commands import main
from focal_retina.engine import Trainer

ROOT = Path(__file__).parents[2]
# `time` and its like differ between any two runs.
CLOCKS = {"time", "data_time", "rank_data_time", "eta_seconds"}

SETTINGS = """
    SEED 5 OUTPUT_DIR '' MODEL.WEIGHTS '' MODEL.DEVICE cpu
    MODEL.BACKBONE.NAME build_resnet_fpn_backbone_without_top_block MODEL.BACKBONE.FREEZE_AT 0
    MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.OUT_FEATURES ['res3']
    MODEL.RESNETS.NORM BN MODEL.FPN.IN_FEATURES ['res3'] MODEL.FPN.OUT_CHANNELS 8
    MODEL.ANCHOR_GENERATOR.SIZES [[16,28,40]] MODEL.RETINANET.IN_FEATURES ['p3']
    MODEL.RETINANET.NUM_CONVS 1 MODEL.RETINANET.NUM_CLASSES 2
    MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL plain DATASETS.TRAIN ('tiny',) DATASETS.TEST ('tiny',)
    DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (48,56,64) INPUT.MIN_SIZE_TEST 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.01 SOLVER.STEPS (8,) SOLVER.MAX_ITER 12
    SOLVER.CHECKPOINT_PERIOD 3 SOLVER.WARMUP_ITERS 4 TEST.EVAL_PERIOD 4 TEST.EXPECTED_RESULTS []
"""
WORDS = SETTINGS.split()
OPTIONS = dict(zip(WORDS[::2], WORDS[1::2], strict=True))
AUGMENTATIONS = [
    ["RandomContrast", {"intensity_min": 0.5, "intensity_max": 1.5}],
    ["RandomRotation", {"angle": [-20, 20]}],
]
AVERAGED = {"MODEL.FOCAL_RETINA.EMA_DECAY": 0.8, "SOLVER.ACCUMULATE": 2, "TEST.LOSS": True}
ALL_ON = AVERAGED | {"TEST.KEEP_BEST": "bbox/AP", "TEST.PATIENCE": 2, "TEST.EVAL_PERIOD": 2}
ALL_ON |= {"SOLVER.CHECKPOINTS_KEPT": 1, "INPUT.AUGMENTATIONS": AUGMENTATIONS}


def start(function, *arguments, log):
    """Start ``function(*arguments)`` in a process of its own, its output going to ``log``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["focal_retina.commands.train", "torch.utils.tensorboard"])
    process = context.Process(target=_logged, args=(function, arguments, str(log)))
    process.start()
    return process


def finish(process, log, status=0):
    """Wait for a process; its exit status must be ``status``."""
    process.join(timeout=120)
    assert process.exitcode == status, f"status {process.exitcode}\n{Path(log).read_text()[-4000:]}"


def _logged(function, arguments, log):
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # Data workers as in a process that a user starts
    multiprocessing.set_start_method("fork", force=True)
    sys.exit(function(*arguments))


def train(tiny_coco, out, options=(), before=None, environment=(), flag="--resume"):
    """Train through the command line, metrics every 2 iterations; train_net.py's exit status.
    ``options`` differ from ``OPTIONS``; ``before`` is called first and plants what kills the run.
    """
    os.chdir(ROOT)
    os.environ.update(environment)
    train = importlib.import_module("focal_retina.commands.train")
    Trainer.WRITER_PERIOD = 2
    # Pictures and the listing of libraries take longer than the training.
    train.report_if_finished = lambda trainer: None
    collect_env.collect_env_info = str
    if before is not None:
        before()
    values = {**OPTIONS, "OUTPUT_DIR": str(out), **dict(options)}
    argv = ["train", "--config-file", "configs/Base-FocalRetinaNet.yaml", flag]
    argv += ["--register", "tiny={}:{}".format(*tiny_coco)]
    argv += [str(x) for item in values.items() for x in item]
    return main(argv)


def metrics(out):
    """The lines of metrics.json, without what a clock says. NaN (no AP) is the string "NaN"."""
    lines = [
        json.loads(line, parse_constant=str)
        for line in Path(out, "metrics.json").read_text().splitlines()
    ]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def tensors(out):
    """Every tensor of the last checkpoint by its path: weights, momentum, random states."""
    leaves, _ = tree_flatten_with_path(torch.load(Path(out, "model_final.pth"), weights_only=True))
    return {keystr(path): x for path, x in leaves if isinstance(x, torch.Tensor)}


def assert_same_run(out, expected):
    """Bit for bit: weights, optimizer and random states, and all metrics but times."""
    assert metrics(out) == metrics(expected)
    ours, theirs = tensors(out), tensors(expected)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
