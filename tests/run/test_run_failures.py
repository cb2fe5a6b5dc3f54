"""`./run`: the one line it says when it cannot install."""

import errno
import os
import re
import sys
from pathlib import Path

import pytest
from run_project import REPOSITORY, Project


def test_failed_update_leaves_the_old_environment_to_the_old_pins(standing: Project) -> None:
    standing.pin("environment", alpha="3", beta="1")
    line = standing.fails()
    assert "No matching distribution found for alpha==3" in line
    assert f"(full output: {standing.venv / '.run' / 'pip.log'})" in line
    standing.pin("environment", alpha="1", beta="1")
    assert standing.run("-c", "import alpha").stderr == ""


def test_wrong_hash_and_unreachable_index(standing: Project) -> None:
    requirements = standing.root / "requirements" / "environment.txt"
    standing.pin("environment", alpha="2")
    requirements.write_text(re.sub("sha256:.{8}", "sha256:00000000", requirements.read_text()))
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in standing.fails()
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    assert "check the network" in standing.fails(PIP_FIND_LINKS="", **index)


def test_directory_of_others_is_left_alone(standing: Project, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("all my work")
    line = standing.fails(FOCAL_RETINA_VENV=str(tmp_path / "theirs"))
    assert "was not made by ./run" in line
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
    below_a_file = str(standing.root / "run" / "venv")
    assert f"{below_a_file} cannot be set up" in standing.fails(FOCAL_RETINA_VENV=below_a_file)


def test_full_and_unwritable_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "requirements")
    from install import explain

    for number, hint in {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EACCES: "set FOCAL_RETINA_VENV to a directory that can be written",
        errno.EROFS: "set FOCAL_RETINA_VENV to a directory that can be written",
    }.items():
        assert hint in explain(Path("/place"), "", f"ERROR: {os.strerror(number)}\n")


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

    assert "(python3 is 3.9.18)" in pretend("import sys; sys.version_info = (3, 9, 18)")
    assert "(python3 is without the module ensurepip (Debian: apt install python3-venv))" in (
        pretend('import sys; sys.modules["ensurepip"] = None')
    )
