"""The process of one trial: ``python process.py DIRECTORY SCRIPT ARGUMENTS…``.

It runs the training as ``python SCRIPT ARGUMENTS…`` would (SCRIPT may be ``-m MODULE``), writes its
output to a file, ends with its parent, waits for another process in the same directory, and records
time and memory. It imports only the standard library, so that its first lines act at once.
"""

import ctypes
import importlib.util
import json
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

CONSOLE_FILE = "console.txt"
_USAGE_FILE = "usage.json"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def read_usage(directory: Path) -> tuple[float, float]:
    """Seconds of all attempts of a trial and their peak memory in MiB; zeros before one ended."""
    try:
        content = json.loads((directory / _USAGE_FILE).read_text())
        return content["seconds"], content["peak_memory_mb"]
    except FileNotFoundError:
        return 0.0, 0.0


def main() -> None:
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    _end_with_parent()
    with open(directory / CONSOLE_FILE, "ab") as console:
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
    files = _load_files()
    with files.file_lock(directory / ".lock"):
        start = time.monotonic()
        try:
            _run_as_python_would(command)
        finally:
            seconds, peak = read_usage(directory)
            usage = (seconds + time.monotonic() - start, max(peak, _peak_memory_mb()))
            with files.atomic_write(directory / _USAGE_FILE, "w") as file:
                json.dump(dict(zip(("seconds", "peak_memory_mb"), usage, strict=True)), file)


def _end_with_parent() -> None:
    """Let Linux send SIGTERM when the parent dies: a killed sweep leaves no training behind."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that call
        sys.exit(1)


def _load_files() -> ModuleType:
    """focal_retina/files.py by its location: importing the package would import torch."""
    path = Path(__file__).resolve().parents[1] / "files.py"
    spec = importlib.util.spec_from_file_location("focal_retina_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_as_python_would(command: list[str]) -> None:
    script, *arguments = command
    if script == "-m":
        sys.argv, sys.path[0] = arguments, os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(script).resolve().parent)
        runpy.run_path(script, run_name="__main__")


def _peak_memory_mb() -> float:
    torch = sys.modules.get("torch")  # the training's, if it came that far
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB


if __name__ == "__main__":
    main()
