"""`./run`: what it shows while it installs, and the one line it says when it cannot."""

import errno
import os
import re
import sys
from pathlib import Path

import pytest
from run_project import REPOSITORY, Project

UNREACHABLE = "http://127.0.0.1:9/simple"


def test_failed_update_leaves_the_old_environment_to_the_old_pins(standing: Project) -> None:
    standing.pin("environment", alpha="3", beta="1")
    line = standing.fails()
    assert "the package index has no alpha==3 for this Python" in line
    assert (standing.venv / ".run" / "pip.log").read_text()
    assert str(standing.venv / ".run" / "pip.log") in line
    standing.pin("environment", alpha="1", beta="1")
    assert standing.run("-c", "import alpha").stderr == ""


def test_wrong_hash_is_refused(standing: Project) -> None:
    requirements = standing.root / "requirements" / "environment.txt"
    standing.pin("environment", alpha="2")
    requirements.write_text(re.sub("sha256:.{8}", "sha256:00000000", requirements.read_text()))
    assert "is not the pinned one (its sha256 differs)" in standing.fails()


@pytest.mark.parametrize("retries", ["0", "1"])  # pip names the failed connection at a retry only
def test_unreachable_index(standing: Project, retries: str) -> None:
    standing.pin("environment", alpha="2")
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": UNREACHABLE, "PIP_RETRIES": retries}
    line = standing.fails(PIP_FIND_LINKS="", **index)
    assert "the package index does not answer; check the network" in line


def test_directory_of_others_is_left_alone(standing: Project, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("all my work")
    line = standing.fails(FOCAL_RETINA_VENV=str(tmp_path / "theirs"))
    assert "was not made by ./run" in line
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]


def test_place_below_a_file(standing: Project) -> None:
    place = str(standing.root / "run" / "venv")
    assert f"{place} cannot be set up" in standing.fails(FOCAL_RETINA_VENV=place)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left for /place, which takes"),
        (errno.EDQUOT, "no space left for /place, which takes"),
        (errno.EACCES, "/place cannot be written; set FOCAL_RETINA_VENV"),
        (errno.EROFS, "/place cannot be written; set FOCAL_RETINA_VENV"),
    ],
)
def test_full_and_unwritable_disks_are_told(
    number: int, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "requirements")
    from install import explain
    from pip_process import Pip

    error = OSError(number, os.strerror(number))
    assert explain(error, Path("/place")).startswith(message)
    pip = Pip(root=Path("/place"), log=tmp_path, temporary=tmp_path, lock=0, size="much")
    assert pip.explain(f"ERROR: Could not install: {error}\n", 1).startswith(message)


@pytest.mark.parametrize(
    ("on_terminal", "shown"),
    [
        (False, "run: downloading torch-2.8 (554.6 MB)\nrun: unpacking 20 packages\n"),
        (
            True,
            "\r\033[Krun: downloading torch-2.8: 277 of 555 MB"
            "\r\033[Krun: unpacking 20 packages"
            "\r\033[K",
        ),
    ],
)
def test_progress_is_shown(
    on_terminal: bool,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "requirements")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal, raising=False)
    from pip_process import Progress

    progress = Progress()
    assert not progress.follow("Collecting torch==2.8\n")
    assert not progress.follow("  Downloading torch-2.8-cp311-linux.whl.metadata (30 kB)\n")
    assert not progress.follow("  Downloading https://host/a/torch-2.8-cp311.whl (554.6 MB)\n")
    assert progress.follow("Progress 277300000 of 554600000\n")
    assert not progress.follow(f"Installing collected packages: {', '.join('a' * 20)}\n")
    progress.clear()
    assert capsys.readouterr().err == shown


def test_unusable_pythons_are_named(project: Project) -> None:
    python = project.root / "bin" / "python3"
    real = os.path.realpath(sys.executable)
    env = project.without_python()
    env["PATH"] = f"{python.parent}:{env['PATH']}"

    def pretend(code: str) -> str:
        python.unlink()
        # Called as `python3 -E -c CODE NAME`.
        python.write_text(
            f"#!/bin/sh\nshift 2\nexec '{real}' -c '{code}; exec(sys.argv.pop(1))' \"$@\"\n"
        )
        python.chmod(0o755)
        return project.fails(**env)

    assert "(python3 is 3.9.18); install one" in pretend(
        "import sys; sys.version_info = (3, 9, 18)"
    )
    assert "(python3 is without the module ensurepip (Debian: apt install python3-venv))" in (
        pretend('import sys; sys.modules["ensurepip"] = None')
    )
    python.write_text("#!/bin/sh\nexit 127\n")  # as a version manager's shim without a version
    assert "(there is none at all)" in project.fails(**env)
