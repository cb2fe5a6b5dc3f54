"""The command line: what a user types, what a user gets wrong, and a training in miniature."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from focal_retina.commands import main, train

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart" / "shapes.yaml"
TINY_MODEL = [
    *(
        "MODEL.FPN.OUT_CHANNELS",
        "8",
        "MODEL.RETINANET.NUM_CONVS",
        "1",
        "MODEL.RETINANET.NUM_CLASSES",
        "2",
    ),
    *(
        "MODEL.RESNETS.NORM",
        "FrozenBN",
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
        "INPUT.MIN_SIZE_TEST",
        "64",
    ),
    *(
        "SOLVER.IMS_PER_BATCH",
        "2",
        "SOLVER.MAX_ITER",
        "3",
        "SOLVER.STEPS",
        "()",
        "DATALOADER.NUM_WORKERS",
        "0",
    ),
    *("DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "TEST.EXPECTED_RESULTS", "[]"),
]


@pytest.fixture
def run(capfd):
    """Call train_net.py with arguments; returns (exit status, what it wrote to stderr)."""

    def call(*arguments):
        return main(["train", *map(str, arguments)], prog="train_net.py"), capfd.readouterr().err

    yield call
    # Detectron2's handlers hold on to the stream that this test captured.
    for name in ("detectron2", "fvcore", "focal_retina"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()
    for name in set(DatasetCatalog) & {"tiny"}:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def train_tiny(run, tiny_coco, tmp_path):
    """Train on tiny_coco for 3 iterations, with further arguments."""

    def call(*arguments, flags=()):
        json_file, folder = tiny_coco
        fixed = ["--config-file", CONFIG, "--register", f"tiny={json_file}:{folder}", *flags]
        return run(*fixed, *TINY_MODEL, "OUTPUT_DIR", tmp_path / "out", *arguments)

    return call


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config-file"),
        (["--config-file", "none.yaml"], "none.yaml does not exist"),
        (["--config-file", CONFIG, "MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["--config-file", CONFIG, "MODEL.DEVICE"], "MODEL.DEVICE"),
        (["--config-file", CONFIG, "DATASETS.TRAIN", "('nowhere',)"], "'nowhere'.*--register"),
        (
            ["--config-file", CONFIG, "MODEL.RETINANET.NUM_CLASSES", "9"],
            "MODEL.RETINANET.NUM_CLASSES 4",
        ),
        (["--config-file", CONFIG, "MODEL.WEIGHTS", "none.pth"], "none.pth does not exist"),
        (
            ["--config-file", CONFIG, "MODEL.META_ARCHITECTURE", "FocalRetina"],
            "'FocalRetina' is not a registered model",
        ),
        (["--config-file", CONFIG, "--register", "x=none.json:."], "none.json"),
        (["--config-file", CONFIG, "--import", "none.py"], "no file .*none.py"),
        (
            [
                "--config-file",
                CONFIG,
                "MODEL.FOCAL_RETINA.PRECISION",
                "fp16",
                "MODEL.DEVICE",
                "cpu",
            ],
            "auto",
        ),
        (["--config-file", CONFIG, "MODEL.FOCAL_RETINA.PRECISION", "int4"], "int4"),
        (["--config-file", CONFIG, "MODEL.FOCAL_RETINA.CLS_LOSS.NAME", "FocalLos"], "FocalLoss"),
        (["--config-file", CONFIG, "MODEL.FOCAL_RETINA.HEAD.NAME", "Heda"], "FocalRetinaNetHead"),
    ],
)
def test_user_errors_are_one_line_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, err = run(*arguments)
    assert status == 2
    (line,) = [x for x in err.splitlines() if x.startswith("train_net.py: ")]
    assert re.search(message, line), line
    assert "Traceback" not in err


def test_unwritable_output(run, tmp_path):
    (tmp_path / "file").write_text("")
    status, err = run("--config-file", CONFIG, "OUTPUT_DIR", tmp_path / "file" / "out")
    assert status == 2
    assert "OUTPUT_DIR" in err and "cannot be written" in err


def test_wrong_class_count_gives_the_right_number(train_tiny):
    status, err = train_tiny("MODEL.RETINANET.NUM_CLASSES", "80")
    assert status == 2
    assert "set MODEL.RETINANET.NUM_CLASSES 2" in err


def test_trains_evaluates_reports_and_resumes(train_tiny, tmp_path):
    out = tmp_path / "out"
    assert train_tiny()[0] == 0
    assert (out / "model_final.pth").is_file()
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 3
    assert "bbox/AP" in metrics[-1]
    for name in ("detections.png", "training.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert list(out.glob("events.out.tfevents.*"))

    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
    assert train_tiny("SOLVER.MAX_ITER", "5", *augmented, flags=["--resume"])[0] == 0
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 5
    assert {"bbox/AP", "bbox_TTA/AP"} <= metrics[-1].keys()

    status, _ = train_tiny("MODEL.WEIGHTS", out / "model_final.pth", flags=["--eval-only"])
    assert status == 0
    # What was trained with loss scaling on a GPU is evaluated without one.
    fp16 = ["MODEL.FOCAL_RETINA.PRECISION", "fp16", "MODEL.DEVICE", "cpu"]
    further = [*fp16, *augmented]
    status, _ = train_tiny(
        "MODEL.WEIGHTS", out / "model_final.pth", *further, flags=["--eval-only"]
    )
    assert status == 0
    assert list(out.glob("TTA/inference/tiny/*.json"))


def test_trains_detectron2s_own_model(train_tiny):
    """For a comparison with the stock model: one command, one word changed."""
    assert train_tiny("MODEL.META_ARCHITECTURE", "RetinaNet", "SOLVER.AMP.ENABLED", "False")[0] == 0


def test_trains_with_a_loss_of_ones_own(train_tiny, tmp_path):
    (tmp_path / "half_loss.py").write_text(
        "from focal_retina.losses import CLS_LOSS_REGISTRY, DenseLoss\n"
        "@CLS_LOSS_REGISTRY.register()\n"
        "class HalfLoss(DenseLoss):\n"
        "    def elementwise(self, x_t):\n"
        "        return (1 - x_t.sigmoid()) / 2\n"
    )
    flags = ["--import", tmp_path / "half_loss.py"]
    assert train_tiny("MODEL.FOCAL_RETINA.CLS_LOSS.NAME", "HalfLoss", flags=flags)[0] == 0
    # The registry keeps it: a file that registers the name a second time is refused.
    (tmp_path / "again.py").write_text((tmp_path / "half_loss.py").read_text())
    status, err = train_tiny(flags=["--import", tmp_path / "again.py"])
    assert status == 2
    assert "'HalfLoss'" in err


def test_two_processes_on_cpu(tiny_coco, tmp_path):
    json_file, folder = tiny_coco
    command = [
        sys.executable,
        "train_net.py",
        "--num-gpus",
        "2",
        "--dist-url",
        "auto",
        "--config-file",
        str(CONFIG),
    ]
    command += [
        "--register",
        f"tiny={json_file}:{folder}",
        *TINY_MODEL,
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_interrupt_is_one_line_and_status_130(run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "launch_training", interrupted)
    status, err = run("--config-file", CONFIG)
    assert status == 130
    assert "--resume" in err and "Traceback" not in err
