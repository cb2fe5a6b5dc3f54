"""The package as others install it: a wheel, an editable install, and what both ship."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "quickstart/shapes.yaml"


def python(executable: str | Path, *arguments: str | Path, **options: Any) -> str:
    """Runs an isolated Python, so that the checkout is not on its path; returns its stdout."""
    command = [executable, "-I", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pip(command: str, *arguments: str | Path, executable: str | Path = sys.executable) -> None:
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    python(executable, "-m", "pip", command, *offline, *arguments)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since a build leaves files beside setup.py."""
    root = tmp_path_factory.mktemp("checkout") / "focal_retina"
    unbuilt = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("focal_retina", "configs"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=unbuilt)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, root)
    return root


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", f"--wheel-dir={directory}", checkout)
    (path,) = directory.glob("*.whl")
    return zipfile.ZipFile(path)


def shipped_version() -> str:
    text = (REPOSITORY / "focal_retina" / "__init__.py").read_text()
    return re.search('__version__ = "(.+)"', text)[1]


def test_wheel_holds_every_module_and_config_and_nothing_else(
    checkout: Path, wheel: zipfile.ZipFile
) -> None:
    modules = {str(path.relative_to(checkout)) for path in checkout.glob("focal_retina/**/*.py")}
    templates = {
        str(path.relative_to(checkout)) for path in checkout.glob("focal_retina/*/templates/*")
    }
    configs = {
        f"focal_retina/{path.relative_to(checkout)}"
        for pattern in ("configs/**/*.yaml", "configs/lazy/*.py")
        for path in checkout.glob(pattern)
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert templates
    assert shipped == modules | templates | configs
    assert f"focal_retina/configs/{CONFIG}" in shipped


@pytest.mark.parametrize("editable", [False, True], ids=["copied", "editable"])
def test_installed_package_finds_its_configs(
    checkout: Path, tmp_path: Path, editable: bool
) -> None:
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
    assert Path(module).is_relative_to(home)
    assert Path(config).is_relative_to(home)
    assert (Path(config).read_text(), version) == (
        (REPOSITORY / "configs" / CONFIG).read_text(),
        shipped_version(),
    )


def test_building_imports_neither_torch_nor_detectron2(checkout: Path, tmp_path: Path) -> None:
    for name in ("torch", "detectron2", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported while building')")
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [shipped_version()], result.stderr
