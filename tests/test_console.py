"""What a user sees of the first command: nothing that is nobody's business."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# How Python and PyTorch's log print a warning
WARNING = re.compile(r"Warning:|warnings\.warn|is deprecated|^[WE]\d{4} ")


def run(*arguments, cwd=ROOT, **environment):
    """Exit status and all that the command prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.returncode, done.stdout


def test_the_first_command_starts_without_a_warning(tiny_coco, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    annotations, images = tiny_coco
    status, output = run(
        *("train_net.py", "--config-file", "configs/quickstart/shapes.yaml"),
        *("--register", f"tiny={annotations}:{images}", "OUTPUT_DIR", tmp_path / "out"),
        *("DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "SOLVER.MAX_ITER", 1),
        *("MODEL.RETINANET.NUM_CLASSES", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
        *("TEST.EXPECTED_RESULTS", "[]"),
    )
    assert status == 0, output
    assert [x for x in output.splitlines() if WARNING.search(x)] == []


def test_the_users_own_warnings_stay(tmp_path):
    """The same deprecations, but of the user's code."""
    (tmp_path / "mine.py").write_text(
        "import focal_retina, torch\n"
        "def double(x: torch.Tensor):\n"
        "    return 2 * x\n"
        "torch.jit.script(double)\n"
        "import warnings\n"
        "warnings.warn('pkg_resources is deprecated as an API, and I use it')\n"
    )
    status, output = run("-W", "default", tmp_path / "mine.py", cwd=tmp_path)
    assert status == 0, output
    assert "torch.jit.script` is deprecated" in output and "and I use it" in output


def test_without_detectron2_the_import_says_how_to_get_it(tmp_path):
    (tmp_path / "detectron2.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'detectron2'\", name='detectron2')\n"
    )
    status, output = run(
        "-c", "import focal_retina", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"
    )
    assert status == 1
    message = output.splitlines()[-1]
    for part in ("--no-build-isolation", "setuptools<81", "wheel", "git+https://", "./run"):
        assert part in message
