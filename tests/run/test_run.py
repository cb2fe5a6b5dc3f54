"""`./run`: what it makes, when it makes it again, what it passes on; and the one line it says when
it cannot install."""

import json
import os
import re
import signal

import pytest
from helpers import wait_for

PROBE = "import {0}; print({0}.__version__)".format


def test_first_call_makes_environment_and_later_ones_use_it(project):
    (project.root / "link").symlink_to("second link")
    (project.root / "second link").symlink_to(project.root / "run")
    first = project.run("-c", PROBE("alpha"), script="link")
    assert (first.returncode, first.stdout) == (0, "1\n"), first
    assert [line.split()[1] for line in first.stderr.splitlines()] == ["setting", "the"]
    assert str(project.venv) in first.stderr

    second = project.run("-c", PROBE("detectron2"), script="link")
    assert (second.returncode, second.stdout, second.stderr) == (0, "1\n", "")
    # Detectron2 is taken from a wheel for another Python.
    (site,) = project.venv.glob("lib/python3.*/site-packages")
    assert [path.name for path in site.glob("detectron2/*.*")] == ["__init__.py"]
    assert not (site / "tools").exists()
    assert (site / "photographs" / "a.png").exists()


def test_environment_may_lie_elsewhere_and_be_shared(standing, tmp_path):
    elsewhere = tmp_path / "else where"
    standing.venv.rename(elsewhere)
    (standing.root / "mine.py").write_text("")
    code = "import sys, mine; print(sys.prefix); print(mine.__file__)"
    for name in (str(elsewhere), os.path.relpath(elsewhere, "/")):
        result = standing.run("-c", code, FOCAL_RETINA_VENV=name)
        assert result.stdout.splitlines() == [str(elsewhere), str(standing.root / "mine.py")]
        assert result.stderr == ""
    assert not standing.venv.exists()


def test_arguments_and_exit_status_pass_through(standing):
    arguments = ["a b", "*", "", "-c", "$HOME", "'", "é\n"]
    code = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(7)"
    result = standing.run("-c", code, *arguments)
    assert (json.loads(result.stdout), result.stderr) == (arguments, "")
    assert result.returncode == 7
    paths = standing.run("-c", "import sys; print(sys.path[1:3])", PYTHONPATH="/theirs")
    assert paths.stdout == f"{[str(standing.root), '/theirs']}\n"
    killed = standing.run("-c", "import os; os.kill(os.getpid(), 9)")
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "damage",
    [
        "lib/python3.*/site-packages/alpha",
        "lib/python3.*/site-packages/beta/__init__.py",
        "lib/python3.*/site-packages/beta-1.dist-info",
        "bin/python",
        "lib",
        ".run/stamp",
        ".run/manifest",
    ],
)
def test_damage_is_noticed(standing, damage):
    without_python = standing.without_python()
    assert standing.run("-c", PROBE("beta"), **without_python).stdout == "1\n"
    (path,) = standing.venv.glob(damage)
    path.rename(path.with_name("gone"))
    # Noticed: a Python to repair with is looked for.
    assert "no Python" in standing.fails(**without_python)


def test_changed_pins_update_in_place(standing):
    (site,) = standing.venv.glob("lib/python3.*/site-packages")
    (site / "users_own.py").write_text("__version__ = 'kept'\n")
    standing.pin("environment", alpha="2")
    standing.pin("detectron2", repackaged_detectron2="2")
    result = standing.run("-c", "import alpha, users_own; print(alpha.__version__)")
    assert (result.returncode, result.stdout) == (0, "2\n"), result
    assert result.stderr.startswith("run: the pins in requirements/ changed")
    left = {"alpha-2", "builder-1", "photographs-1", "repackaged_detectron2-2"}
    assert {path.stem for path in site.glob("*-[12].dist-info")} == left
    assert not (site / "beta").exists()
    assert not list(site.glob("detectron2/_C*"))
    assert standing.run("-c", "").stderr == ""


def test_killed_call_is_repaired_by_the_next(project):
    process = project.start("-c", "")
    wait_for((project.venv / "pyvenv.cfg").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project.venv / ".run" / "stamp").exists()
    (project.venv / "leftover").write_text("")
    result = project.run("-c", PROBE("alpha"))
    assert (result.returncode, result.stdout) == (0, "1\n"), result
    assert not (project.venv / "leftover").exists()


def test_interrupt_ends_quietly(project):
    process = project.start("-c", "")
    wait_for((project.venv / "pyvenv.cfg").exists)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert stderr.splitlines()[1:] == ["run: interrupted; the next call starts over"]


def test_second_call_waits_for_the_first(project):
    calls = [project.start("-c", PROBE("alpha"))]
    wait_for((project.venv / "pyvenv.cfg").exists)
    calls.append(project.start("-c", PROBE("beta")))
    (first, first_messages), (second, second_messages) = (call.communicate() for call in calls)
    assert [call.returncode for call in calls] == [0, 0]
    assert (first, second) == ("1\n", "1\n")
    assert first_messages.startswith("run: setting up")
    assert re.fullmatch("run: another call is setting up .*; waiting for it\n", second_messages)


def test_failed_update_leaves_the_old_environment_to_the_old_pins(standing):
    standing.pin("environment", alpha="3", beta="1")
    line = standing.fails()
    assert "No matching distribution found for alpha==3" in line
    assert f"(full output: {standing.venv / '.run' / 'pip.log'})" in line
    standing.pin("environment", alpha="1", beta="1")
    assert standing.run("-c", "import alpha").stderr == ""


def test_wrong_hash_and_unreachable_index(standing):
    requirements = standing.root / "requirements" / "environment.txt"
    standing.pin("environment", alpha="2")
    requirements.write_text(re.sub("sha256:.{8}", "sha256:00000000", requirements.read_text()))
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in standing.fails()
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    assert "check the network" in standing.fails(PIP_FIND_LINKS="", **index)


def test_directory_of_others_is_left_alone(standing, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("all my work")
    line = standing.fails(FOCAL_RETINA_VENV=str(tmp_path / "theirs"))
    assert "was not made by ./run" in line
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
    below_a_file = str(standing.root / "run" / "venv")
    assert f"{below_a_file} cannot be set up" in standing.fails(FOCAL_RETINA_VENV=below_a_file)
