"""Makes, updates or repairs the environment of ../run, which calls this file: install.py VENV.

A standing environment has in VENV/.run
  stamp     the text of the pins (and of this file) that it was made from, written last;
  manifest  the top-level files of what was installed, so that a missing one is noticed.
What was killed half-way has no manifest, and is made anew.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pip_process import NO_SPACE, UNWRITABLE, Pip, SetupError, say

HERE = Path(__file__).resolve().parent
BOOTSTRAP = HERE / "bootstrap.txt"
ENVIRONMENT = HERE / "environment.txt"
DETECTRON2 = HERE / "detectron2.txt"
SIZE = "3.2 GB to download, 6 GB on disk, 9 GB while it is made"

# detectron2.txt names a wheel for Python 3.10, of which only the Python files are wanted: any
# Python may take it, by asking for that tag and naming the directory.
AS_PYTHON_310 = [
    *("--no-deps", "--upgrade", "--python-version=3.10", "--implementation=cp"),
    *("--abi=none", "--platform=any", "--only-binary=:all:"),
]
UNWANTED = [
    "detectron2/_C.*",  # for an older torch: Python 3.10 alone would try to load it, and fail
    "tools",  # a top-level package of Detectron2's scripts
]


class Environment:
    """The virtual environment at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root / "bin" / "python"
        self.state = root / ".run"
        self.lock = self.state / "lock"
        self.stamp = self.state / "stamp"
        self.manifest = self.state / "manifest"
        self.temporary = self.state / "tmp"
        sources = (BOOTSTRAP, ENVIRONMENT, DETECTRON2, Path(__file__))
        self.wanted = "".join(path.read_text() for path in sources)

    def bring_up_to_date(self) -> None:
        """Updates an environment that is whole in place, and makes any other from scratch.

        Raises:
            SetupError: the directory is somebody else's, or pip failed.
        """
        with self.locked() as lock:
            if self.is_current():
                return
            pip = Pip(
                root=self.root,
                log=self.state / "pip.log",
                temporary=self.temporary,
                lock=lock.fileno(),
                size=SIZE,
            )
            if self.is_whole():
                say(f"the pins in requirements/ changed; updating {self.root}")
                self.update(pip)
            else:
                say(f"setting up {self.root} ({SIZE}); later calls find it ready")
                self.create(pip)
            shutil.rmtree(self.temporary)
            say("the environment is ready")

    @contextlib.contextmanager
    def locked(self) -> Iterator[TextIO]:
        """Keeps other calls out."""
        if not self.state.exists() and self.root.exists() and any(self.root.iterdir()):
            raise SetupError(
                f"{self.root} was not made by ./run; remove it, or set FOCAL_RETINA_VENV to "
                "another directory"
            )
        while True:
            self.state.mkdir(parents=True, exist_ok=True)
            with self.lock.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"another call is setting up {self.root}; waiting for it")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if is_open_at(lock, self.lock):
                    yield lock
                    return

    def is_current(self) -> bool:
        return self.is_whole() and self.stamp.exists() and self.stamp.read_text() == self.wanted

    def is_whole(self) -> bool:
        """Whether all that was installed is still there."""
        if not self.manifest.exists() or not os.access(self.python, os.X_OK):
            return False
        entries = self.manifest.read_text().splitlines()
        return all((self.root / entry).exists() for entry in entries)

    def create(self, pip: Pip) -> None:
        for path in [*self.root.iterdir(), *self.state.iterdir()]:
            if path not in (self.state, self.lock):
                remove(path)
        # The real path, so that a system upgrade which takes this Python away is noticed.
        python = os.path.realpath(sys.executable)
        pip.call([python, "-I", "-m", "venv", "--without-pip", str(self.root)])
        pip.call([str(self.python), "-I", "-m", "ensurepip"])
        self.install(pip)

    def update(self, pip: Pip) -> None:
        manifest = self.manifest.read_text()
        dropped = pins(self.stamp.read_text()).keys() - pins(self.wanted).keys()
        self.manifest.unlink()
        try:
            if dropped:
                pip("uninstall", "--yes", *sorted(dropped))
            self.install(pip)
        except SetupError:
            # When an index fails, pip has not touched anything yet: the environment still serves
            # the pins that it was made from, and if it does not, the manifest tells.
            self.manifest.write_text(manifest)
            raise

    def install(self, pip: Pip) -> None:
        pip("install", "--require-hashes", f"--requirement={BOOTSTRAP}")
        # That brought setuptools: nothing else need be fetched, unpinned, to build a package.
        options = ["--no-build-isolation", *self.progress_option()]
        pip("install", "--require-hashes", f"--requirement={ENVIRONMENT}", *options)
        self.install_detectron2(pip)
        write(self.manifest, "".join(f"{entry}\n" for entry in self.top_level_entries()))
        write(self.stamp, self.wanted)

    def install_detectron2(self, pip: Pip) -> None:
        ((name, version),) = pins(DETECTRON2.read_text()).items()
        installed = self.distributions()
        if name in installed:
            if installed[name].version == version:
                return
            pip("uninstall", "--yes", name)  # pip would leave the old metadata in a --target
        options = [*AS_PYTHON_310, f"--target={self.site}"]
        pip("install", "--require-hashes", f"--requirement={DETECTRON2}", *options)
        for pattern in UNWANTED:
            for path in self.site.glob(pattern):
                remove(path)

    def progress_option(self) -> list[str]:
        """Returns the option with which pip tells its progress to a pipe (24.1 and later)."""
        major, minor, *_ = self.distributions()["pip"].version.split(".")
        return ["--progress-bar=raw"] if (int(major), int(minor)) >= (24, 1) else []

    def top_level_entries(self) -> list[str]:
        """Returns each pinned package's metadata, commands and modules, relative to the root."""
        entries = set()
        installed = self.distributions()
        for name in installed.keys() & pins(self.wanted).keys():
            for file in installed[name].files or []:
                head, *tail = file.parts
                named = head == ".." or tail in ([], ["__init__.py"])
                entries.add(self.site / (file if named else head))
        return sorted(os.path.relpath(entry, self.root) for entry in entries if entry.exists())

    @property
    def site(self) -> Path:
        return next(self.root.glob("lib/python3.*/site-packages"))

    def distributions(self) -> dict[str, importlib.metadata.Distribution]:
        found = importlib.metadata.distributions(path=[str(self.site)])
        return {normalized(dist.name): dist for dist in found}


def pins(requirements: str) -> dict[str, str]:
    """Returns the version by name of all `name==version` lines."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", requirements, re.MULTILINE)
    return {normalized(name): version for name, version in found}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def is_open_at(file: TextIO, path: Path) -> bool:
    """Whether the file is still the one at the path, from which it may have been removed since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half-written, not even after a power failure."""
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def explain(error: OSError, root: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NO_SPACE.format(root=root, size=SIZE)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UNWRITABLE.format(root=root)
    return f"{root} cannot be set up: {error}"


def main(root: Path) -> int:
    try:
        Environment(root).bring_up_to_date()
    except SetupError as error:
        say(str(error))
    except OSError as error:
        say(explain(error, root))
    except KeyboardInterrupt:
        say("interrupted; the next call starts over")
        return 130
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
