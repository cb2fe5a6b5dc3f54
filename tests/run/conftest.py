"""Projects whose environment is still to be made, or stands."""

import shutil
from pathlib import Path

import pytest
from run_project import Project, write_wheel


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    for name, version in [("builder", "1"), ("alpha", "1"), ("alpha", "2"), ("beta", "1")]:
        module = {f"{name}/__init__.py": f"__version__ = '{version}'\n"}
        write_wheel(directory, name, version, "py3-none-any", module)
    for version in ("1", "2"):
        files = {
            "detectron2/__init__.py": f"__version__ = '{version}'\n",
            "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "not for this torch",
            "tools/__init__.py": "",
        }
        write_wheel(directory, "repackaged_detectron2", version, "cp310-none-any", files)
    return directory


@pytest.fixture
def project(tmp_path: Path, wheels: Path) -> Project:
    return Project(tmp_path / "a project", wheels)


@pytest.fixture(scope="session")
def standing_venv(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    project = Project(tmp_path_factory.mktemp("standing"), wheels)
    result = project.run("-c", "")
    assert result.returncode == 0, result
    return project.venv


@pytest.fixture
def standing(project: Project, standing_venv: Path) -> Project:
    """A project whose environment stands."""
    shutil.copytree(standing_venv, project.venv, symlinks=True)
    return project
