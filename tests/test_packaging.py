"""The package as others install it: a wheel, an editable install, and what both ship."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers import CONFIGS, ROOT
from helpers import python as python_with_checkout

CONFIG = "quickstart/shapes.yaml"
VERSION = re.search('__version__ = "(.+)"', (ROOT / "focal_retina" / "__init__.py").read_text())[1]


def python(executable, *arguments, **options):
    """Run an isolated Python, so that the checkout is not on its path; its stdout."""
    command = [executable, "-I", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pip(command, *arguments, executable=sys.executable):
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    python(executable, "-m", "pip", command, *offline, *arguments)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy, since a build leaves files beside setup.py."""
    root = tmp_path_factory.mktemp("checkout") / "focal_retina"
    unbuilt = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("focal_retina", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=unbuilt)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    return root


def test_wheel_holds_every_module_and_config_and_nothing_else(checkout, tmp_path):
    pip("wheel", f"--wheel-dir={tmp_path}", checkout)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {x for x in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in x}
    expected = set()
    for pattern in ("focal_retina/**/*.py", "focal_retina/*/templates/*"):
        found = [str(path.relative_to(checkout)) for path in checkout.glob(pattern)]
        assert found
        expected.update(found)
    for pattern in ("configs/**/*.yaml", "configs/lazy/*.py"):
        paths = checkout.glob(pattern)
        expected.update(f"focal_retina/{path.relative_to(checkout)}" for path in paths)
    assert shipped == expected
    assert f"focal_retina/configs/{CONFIG}" in shipped


@pytest.mark.parametrize("editable", [False, True], ids=["copied", "editable"])
def test_installed_package_finds_its_configs(checkout, tmp_path, editable):
    python(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    executable = tmp_path / "bin" / "python"
    (site,) = tmp_path.glob("lib/python3.*/site-packages")
    # What the package requires, and pip, are those of this environment.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    pip("install", *["--editable"][: int(editable)], checkout, executable=executable)
    code = (
        "import focal_retina as f; from importlib.metadata import version;"
        f"print(f.__file__, f.get_config_file('{CONFIG}'), version('focal_retina'), sep='\\n')"
    )
    output = python(executable, "-W", "ignore", "-c", code, cwd=tmp_path)
    module, config, version = output.splitlines()
    home = checkout if editable else site
    assert Path(module).is_relative_to(home) and Path(config).is_relative_to(home)
    assert Path(config).read_text() == (CONFIGS / CONFIG).read_text()
    assert version == VERSION


def test_building_imports_neither_torch_nor_detectron2(checkout, tmp_path):
    for name in ("torch", "detectron2", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported while building')")
    done = python_with_checkout("setup.py", "--version", cwd=checkout, PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == [VERSION], done.stderr
