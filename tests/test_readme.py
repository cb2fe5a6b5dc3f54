"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_snippet_for_existing_code_bases_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    code = f"{snippet}\nprint(type(model).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "FocalRetinaNet", done.stderr


def test_files_and_pictures_that_it_names_exist():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:focal_retina|docs|configs|tools)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_commands_that_it_shows_name_real_files():
    for command in re.findall(r"^\./run (\S+)", README, flags=re.M):
        assert command == "-m" or (ROOT / command).is_file(), command
    for config in re.findall(r"--config-file (configs/[\w./-]+)", README):
        assert (ROOT / config).is_file(), config
