"""What a user sees of the first command: nothing that is nobody's business."""

import os
import re

import pytest
from helpers import QUICKSTART, ROOT, TINY_TRAINING, python

# How Python and PyTorch's log print a warning
WARNING = re.compile(r"Warning:|warnings\.warn|is deprecated|^[WE]\d{4} ")


def run(*arguments, **options):
    """Exit status and all that the command prints."""
    done = python(*arguments, **options)
    return done.returncode, done.stdout + done.stderr


def test_the_first_command_starts_without_a_warning(register_tiny, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    status, output = run(
        *("train_net.py", "--config-file", QUICKSTART, *register_tiny),
        *(*TINY_TRAINING.split(), "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path / "out"),
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
