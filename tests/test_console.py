"""What a user sees of the first command: nothing that is nobody's business."""

import os
import re

import pytest
from helpers import QUICKSTART, ROOT, TINY_TRAINING, python

from focal_retina.commands import COMMANDS

# How Python and PyTorch's log print a warning
SWEEP = "title: T\nsetting: S\nreference: a\nrows: [{name: a, overrides: {}}]\n"
WARNING = re.compile(r"Warning:|warnings\.warn|is deprecated|^[WE]\d{4} ")


def run(*arguments, **options):
    """Exit status and all that the command prints."""
    done = python(*arguments, **options)
    return done.returncode, done.stdout + done.stderr


def test_the_first_command_starts_without_a_warning(register_tiny, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    status, output = run(
        *("train_net.py", "--config-file", QUICKSTART, *register_tiny, *TINY_TRAINING.split()),
        *("SOLVER.MAX_ITER", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0),
        *("OUTPUT_DIR", tmp_path / "out"),
    )
    assert status == 0, output
    lines = output.splitlines()
    assert [x for x in lines if WARNING.search(x)] == []
    assert len(lines) <= 32, output
    for part in ("tiny: 6 images", "training in", "starts with the weights", "AP50", "predict"):
        assert part in output
    assert "No checkpoint" not in output and "Fast COCO" not in output
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "RETINANET:" in log and "PyTorch" in log and "\x1b" not in log


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


@pytest.mark.parametrize("command", ["train_net.py", *COMMANDS])
def test_help_comes_without_libraries(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported for --help')")
    words = [command] if command.endswith(".py") else ["-m", "focal_retina", command]
    status, output = run(*words, "--help", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert status == 0 and "usage: " in output, output


@pytest.mark.parametrize("library", ["ray", "markdown", "efficientnet_lite_pytorch"])
def test_a_missing_optional_library_is_one_line(library, tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    block = f"import sys; sys.modules[{library!r}] = None; from focal_retina.commands import main; "
    config = ["--config-file", QUICKSTART, "--output", tmp_path / "out"]
    words = ["sweep", tmp_path / "sweep.yaml", *config]
    if library == "efficientnet_lite_pytorch":
        words = ["check", "--config-file", QUICKSTART]
    status, output = run("-c", f"{block}sys.exit(main({[*map(str, words)]!r}))")
    assert status == 2 and len(output.splitlines()) == 1, output
    assert library in output and "pip install -e '.[" in output


def test_without_detectron2_the_import_says_how_to_get_it(tmp_path):
    (tmp_path / "detectron2.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'detectron2'\", name='detectron2')\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    status, output = run("-c", "from focal_retina import FocalRetinaNet", PYTHONPATH=path)
    assert status == 1
    message = output.splitlines()[-1]
    assert run("-c", "import focal_retina.losses", PYTHONPATH=path)[0] == 0
    status, output = run("-m", "focal_retina", "check", "--config-file", "x", PYTHONPATH=path)
    assert (status, len(output.splitlines())) == (2, 1) and "needs Detectron2" in output
    for part in ("--no-build-isolation", "setuptools<81", "wheel", "git+https://", "./run"):
        assert part in message
