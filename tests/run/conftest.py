"""A small project around the real `run`: its pins and wheels are made here; no index is asked."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT


def write_wheel(directory, name, version, tag, files, requires=""):
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        **files,
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


class Project:
    """A checkout that has only `run` and `requirements/`, with pins of the tests' own."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        self.wheels = wheels
        self.venv = root / ".venv"
        (root / "requirements").mkdir(parents=True)
        shutil.copy(ROOT / "run", root)
        shutil.copy(ROOT / "requirements" / "install.py", root / "requirements")
        self.pin("bootstrap", builder="1")
        self.pin("environment", alpha="1", beta="1")
        self.pin("detectron2", repackaged_detectron2="1")
        self.pin("test_data", photographs="1")
        (root / "bin").mkdir()
        (root / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "FOCAL_RETINA_"))}
        path = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        self.env = {**kept, **path, **pip, "PIP_FIND_LINKS": wheels.as_uri()}

    def pin(self, file: str, **versions: str) -> None:
        with open(self.root / "requirements" / f"{file}.txt", "w") as pins:
            for name, version in versions.items():
                found = self.wheels.glob(f"{name}-{version}-*.whl")
                digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in found]
                digest = digests[0] if digests else "0" * 64
                pins.write(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")

    def start(self, *arguments: str, script: str = "run", **env: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True}
        how = {"cwd": "/", "env": self.env | env, "start_new_session": True}
        return subprocess.Popen([self.root / script, *arguments], **streams, **how)

    def run(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        output = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, *output)

    def fails(self, *arguments: str, **options: str) -> str:
        """Returns the one line with which `run` gives up."""
        result = self.run(*(arguments or ("-c", "")), **options)
        assert (result.returncode, result.stdout) == (2, ""), result
        *progress, line = result.stderr.splitlines()
        assert all(x.startswith(("run: setting up", "run: the pins")) for x in progress), progress
        assert line.startswith("run: ")
        return line

    def without_python(self) -> dict[str, str]:
        """Returns an environment variable PATH on which no Python is."""
        tools = self.root / "tools only"
        tools.mkdir()
        for name in ("sh", "cat", "cmp", "dirname", "readlink"):
            (tools / name).symlink_to(shutil.which(name))
        return {"PATH": str(tools)}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    for name, version in [("builder", "1"), ("alpha", "1"), ("alpha", "2"), ("beta", "1")]:
        module = {f"{name}/__init__.py": f"__version__ = '{version}'\n"}
        write_wheel(directory, name, version, "py3-none-any", module)
    # Its requirement, which no index has, is left out
    photographs = {"photographs/a.png": ""}
    write_wheel(directory, "photographs", "1", "py3-none-any", photographs, requires="nowhere")
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
