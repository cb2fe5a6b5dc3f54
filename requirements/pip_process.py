"""Calls an environment's pip, shows the progress of its downloads and explains its failures.

Standard library only. Messages go to stderr, since stdout belongs to the user's command.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

NO_SPACE = (
    "no space left for {root}, which takes {size}; free some, or set FOCAL_RETINA_VENV to a "
    "directory on a larger disk"
)
UNWRITABLE = (
    "{root} cannot be written; set FOCAL_RETINA_VENV to a directory that can, or have its owner "
    "call ./run"
)
# What pip prints, and what a user can do about it. The first match counts.
CAUSES = {
    r"DO NOT MATCH THE HASHES": (
        "a downloaded file is not the pinned one (its sha256 differs): the index or a proxy "
        "serves another file, or the download broke; call again, and if it stays so use another "
        "index"
    ),
    r"No space left on device|Disk quota exceeded": NO_SPACE,
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|NameResolutionError"
    r"|ConnectionResetError|RemoteDisconnected|ProtocolError|timed out"
    r"|from versions: none": (
        "the package index does not answer; check the network, or name another index in pip's "
        "configuration (pip config set global.index-url URL)"
    ),
    r"No matching distribution found for (?P<package>\S+)": (
        "the package index has no {package} for this Python and platform"
    ),
    r"Permission denied|Read-only file system": UNWRITABLE,
}


class SetupError(Exception):
    """Says in one line what is wrong and what to do."""


def say(message: str) -> None:
    print(f"run: {message}", file=sys.stderr, flush=True)


class Pip:
    """The pip of the environment at `root`.

    Args:
        root: the environment's directory.
        log: a file to add all output to.
        temporary: a directory to unpack in. It should lie on root's disk, since the system's own
            is often small.
        lock: a file descriptor for pip to inherit, so that a pip which outlives its killed parent
            still keeps other calls out.
        size: the environment's size in words, for the message that the disk is full.
    """

    def __init__(self, *, root: Path, log: Path, temporary: Path, lock: int, size: str) -> None:
        self.root = root
        self.log = log
        self.temporary = temporary
        self.lock = lock
        self.size = size

    def __call__(self, command: str, *arguments: str) -> None:
        """Runs a pip command.

        Raises:
            SetupError: pip failed; the message tells why.
        """
        options = ["--no-input", "--disable-pip-version-check", *arguments]
        self.call([str(self.root / "bin" / "python"), "-I", "-m", "pip", command, *options])

    def call(self, command: list[str]) -> None:
        """Runs any other command in the same way."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env |= {"PIP_USER": "0", "TMPDIR": str(self.temporary)}
        with (
            self.log.open("a+") as log,
            subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[self.lock],
            ) as process,
        ):
            assert process.stdout
            start = log.tell()
            progress = Progress()
            try:
                for line in process.stdout:
                    if not progress.follow(line):
                        log.write(line)
            except BaseException:
                process.terminate()
                raise
            finally:
                progress.clear()
            if status := process.wait():
                log.seek(start)
                raise SetupError(self.explain(log.read(), status))

    def explain(self, output: str, status: int) -> str:
        for pattern, template in CAUSES.items():
            if match := re.search(pattern, output):
                message = template.format(root=self.root, size=self.size, **match.groupdict())
                break
        else:
            errors = re.findall(r"(?im)^error: (.*?)\.?$", output)
            reason = errors[-1] if errors else f"exit status {status}"
            message = f"{self.root} cannot be set up: {reason}"
        return f"{message}. The full output is in {self.log}"


class Progress:
    """Shows downloads: on a terminal in one moving line, elsewhere a line for each large file."""

    LARGE = 20  # MB
    MANY = 20  # packages

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.file = ""

    def follow(self, line: str) -> bool:
        """Takes in a line of pip's, and returns whether it told of progress only."""
        if match := re.match(r"Progress (\d+) of (\d+)", line):
            done, total = (int(number) / 1e6 for number in match.groups())
            self.show(f"run: downloading {self.file}: {done:.0f} of {total:.0f} MB")
            return True
        if match := re.match(r"\s*Downloading (?:\S*/)?(\S+) \(([\d.]+) (\w+)\)", line):
            name, size, unit = match.groups()
            self.file = "-".join(name.split("-")[:2])
            if not self.on_terminal and unit == "MB" and float(size) >= self.LARGE:
                say(f"downloading {self.file} ({size} {unit})")
        elif line.startswith("Installing collected packages:"):
            packages = line.count(",") + 1
            self.show(f"run: unpacking {packages} packages")
            if not self.on_terminal and packages >= self.MANY:
                say(f"unpacking {packages} packages")
        return False

    def show(self, text: str) -> None:
        if self.on_terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")
