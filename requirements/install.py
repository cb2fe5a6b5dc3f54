"""Makes, updates or repairs the environment of ../run, which calls this file: install.py VENV.

A standing environment has in VENV/.run
  stamp     the text of the pins (and of this file) that it was made from, written last;
  manifest  the top-level files of what was installed, so that a missing one is noticed.
What was killed half-way has no manifest, and is made anew. Messages go to stderr, since stdout
belongs to the user's command.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("bootstrap.txt", "environment.txt", "detectron2.txt", "test_data.txt", "install.py")
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
# What a user can do about an error of pip's or of the system's, by words in it.
HINTS = {
    "No space left on device|Disk quota exceeded": (
        f"free some space ({SIZE}), or set FOCAL_RETINA_VENV to a directory on a larger disk"
    ),
    "Permission denied|Read-only file system": (
        "set FOCAL_RETINA_VENV to a directory that can be written, or have the owner call ./run"
    ),
    # With the index out of reach pip says that there are no versions.
    "Connection|Timeout|timed out|ProxyError|SSLError|ProtocolError|from versions: none": (
        "check the network and the package index (pip config set global.index-url URL)"
    ),
}


class SetupError(Exception):
    """Says in one line what is wrong and what to do."""


class Environment:
    """The virtual environment at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root / "bin" / "python"
        self.state = root / ".run"
        self.stamp = self.state / "stamp"
        self.manifest = self.state / "manifest"
        self.log = self.state / "pip.log"  # of the last call
        self.wanted = "".join((HERE / name).read_text() for name in SOURCES)

    def bring_up_to_date(self) -> None:
        """Updates an environment that is whole in place, and makes any other from scratch."""
        if not self.state.exists() and self.root.exists() and any(self.root.iterdir()):
            another = "remove it, or set FOCAL_RETINA_VENV to another directory"
            raise SetupError(f"{self.root} was not made by ./run; {another}")
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("w") as lock:
            # pip inherits it: one that outlives its killed parent still keeps other calls out.
            os.set_inheritable(lock.fileno(), True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another call is setting up {self.root}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.is_whole():
                say(f"setting up {self.root} ({SIZE}); later calls find it ready")
                self.create()
            elif self.stamp.read_text() != self.wanted:
                say(f"the pins in requirements/ changed; updating {self.root}")
                self.update()
            else:
                return
            say("the environment is ready")

    def is_whole(self) -> bool:
        """Whether all that was installed is still there."""
        if not (self.manifest.exists() and self.stamp.exists() and self.python.exists()):
            return False
        return all((self.root / x).exists() for x in self.manifest.read_text().splitlines())

    def create(self) -> None:
        for path in [*self.root.iterdir(), *self.state.iterdir()]:
            if path not in (self.state, self.state / "lock"):
                remove(path)
        # The real path, so that a system upgrade which takes this Python away is noticed.
        self.call(os.path.realpath(sys.executable), "venv", str(self.root))
        self.install()

    def update(self) -> None:
        manifest = self.manifest.read_text()
        dropped = pins(self.stamp.read_text()).keys() - pins(self.wanted).keys()
        self.manifest.unlink()
        try:
            if dropped:
                self.pip("uninstall", "--yes", *sorted(dropped))
            self.install()
        except SetupError:
            # When an index fails, pip has not touched anything yet: the environment still serves
            # the pins that it was made from, and if it does not, the manifest tells.
            self.manifest.write_text(manifest)
            raise

    def install(self) -> None:
        self.pip("install", *pinned("bootstrap.txt"))
        # That brought setuptools: nothing else need be fetched, unpinned, to build a package.
        self.pip("install", *pinned("environment.txt"), "--no-build-isolation")
        (site,) = self.root.glob("lib/python3.*/site-packages")
        ((detectron2, version),) = pins((HERE / "detectron2.txt").read_text()).items()
        standing = installed(site).get(detectron2)
        if standing is None or standing.version != version:
            if standing:  # pip would leave its metadata in a --target
                self.pip("uninstall", "--yes", detectron2)
            self.pip("install", *pinned("detectron2.txt"), f"--target={site}", *AS_PYTHON_310)
            for path in (path for pattern in UNWANTED for path in site.glob(pattern)):
                remove(path)
        self.pip("install", "--no-deps", *pinned("test_data.txt"))
        names = pins(self.wanted).keys()
        found = (x for name, x in installed(site).items() if name in names)
        paths = {path for distribution in found for path in top_level(distribution, site)}
        entries = sorted(os.path.relpath(x, self.root) for x in paths if x.exists())
        self.manifest.write_text("\n".join(entries) + "\n")
        self.stamp.write_text(self.wanted)

    def pip(self, *arguments: str) -> None:
        """Runs pip, which shows progress bars on a terminal and writes all else to the log."""
        options = [f"--log={self.log}", "--no-input", "--disable-pip-version-check"]
        self.call(str(self.python), "pip", *arguments, "--quiet", *options)

    def call(self, python: str, module: str, *arguments: str) -> None:
        """Runs a module, or raises SetupError."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        temporary = self.state / "tmp"  # on the environment's disk: the system's own is often small
        temporary.mkdir(exist_ok=True)
        self.log.unlink(missing_ok=True)
        with self.log.open("a") as log:
            result = subprocess.run(
                [python, "-I", "-m", module, *arguments],
                env=env | {"PIP_USER": "0", "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                stderr=log,
                close_fds=False,
            )
        shutil.rmtree(temporary)
        if result.returncode:
            output = self.log.read_text(errors="replace")
            errors = re.findall(r"ERROR: (.*?)\.?$", output, re.MULTILINE)
            reason = errors[-1] if errors else f"{module} ended with {result.returncode}"
            raise SetupError(f"{explain(self.root, reason, output)} (full output: {self.log})")


def explain(root: Path, reason: str, output: str) -> str:
    hint = next((f"; {hint}" for words, hint in HINTS.items() if re.search(words, output)), "")
    return f"{root} cannot be set up: {reason}{hint}"


def pinned(name: str) -> list[str]:
    return ["--require-hashes", f"--requirement={HERE / name}"]


def pins(requirements: str) -> dict[str, str]:
    """Returns the version by name of all `name==version` lines."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", requirements, re.MULTILINE)
    return {normalized(name): version for name, version in found}


def installed(site: Path) -> dict[str, Distribution]:
    return {normalized(x.name): x for x in distributions(path=[str(site)])}


def top_level(distribution: Distribution, site: Path) -> Iterator[Path]:
    """Yields its metadata, commands and modules."""
    for file in distribution.files or []:
        head, *tail = file.parts
        yield site / (file if head == ".." or tail in ([], ["__init__.py"]) else head)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def say(message: str) -> None:
    print(f"run: {message}", file=sys.stderr, flush=True)


def main(root: Path) -> int:
    try:
        Environment(root).bring_up_to_date()
    except SetupError as error:
        say(str(error))
    except OSError as error:
        say(explain(root, str(error), str(error)))
    except KeyboardInterrupt:
        say("interrupted; the next call starts over")
        return 130
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
