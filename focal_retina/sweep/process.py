"""The process of one trial: ``python process.py DIRECTORY SCRIPT ARGUMENTS…``.

It runs the training script as ``python SCRIPT ARGUMENTS…`` would, and adds what a scheduler needs:
its output goes to a file, it ends with its parent, two of them never write to one directory, and
its time and memory are written down. The standard library is all that it needs, so that the first
lines are in force at once.
"""

import ctypes
import fcntl
import json
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONSOLE_FILE = "console.txt"
_USAGE_FILE = "usage.json"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def write_atomically(path: Path, text: str) -> None:
    """Write all of a file or nothing, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_usage(directory: Path) -> tuple[float, float]:
    """Seconds of all attempts of a trial and their peak memory in MiB; zeros before one ended."""
    try:
        content = json.loads((directory / _USAGE_FILE).read_text())
        return content["seconds"], content["peak_memory_mb"]
    except FileNotFoundError:
        return 0.0, 0.0


def main() -> None:
    directory, script, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    _end_with_parent()
    _redirect_output(directory / CONSOLE_FILE)
    with _exclusive(directory / ".lock"):
        start = time.monotonic()
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).resolve().parent)
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            _add_usage(directory, time.monotonic() - start)


def _end_with_parent() -> None:
    """Let Linux send SIGTERM when the parent dies, however it dies: a sweep that was killed leaves
    no training behind."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that call
        sys.exit(1)


def _redirect_output(path: Path) -> None:
    console = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(console, stream)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process holds ``path``, which the system frees when its holder dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _add_usage(directory: Path, seconds: float) -> None:
    seconds_before, peak_before = read_usage(directory)
    usage = {
        "seconds": seconds_before + seconds,
        "peak_memory_mb": max(peak_before, _peak_memory_mb()),
    }
    write_atomically(directory / _USAGE_FILE, json.dumps(usage))


def _peak_memory_mb() -> float:
    torch = sys.modules.get("torch")  # the training's, if it came that far
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB


if __name__ == "__main__":
    main()
