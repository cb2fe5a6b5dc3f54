"""How candidates for one job are measured side by side, and how the figures are shown.

A case is a title and candidates by name, each a function that does the whole job when called. All
candidates of a case run in one process, in turn, round after round, so that a change in the
machine's load meets all of them.
"""

import ctypes
import datetime
import gc
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import timer

from focal_retina.engine.precision import bf16_support

Candidate = Callable[[], object]
Case = tuple[str, Mapping[str, Candidate]]

# The candidate of this name is the floor that others are compared with.
COPY = "copy of the logits"
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Staged:
    """A candidate, and where its time goes: (name, owner, attribute) of functions that it calls.

    No stage may call another one. Stages of the same name are added up.
    """

    run: Candidate
    stages: Sequence[tuple[str, Any, str]]

    def __call__(self) -> object:
        return self.run()


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate."""

    case: str
    candidate: str
    seconds: float  # median of the runs
    saved_bytes: int  # what autograd keeps for backward
    peak_bytes: int | None  # highest use of memory above that before the call; None: not measured
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds; empty: not measured


def measure(cases: Iterable[Case], device: torch.device, runs: int) -> Iterator[list[Row]]:
    """The rows of one case after another, whose inputs are made one case at a time.

    ``runs`` is the number of timed calls of each candidate, after two that aren't.
    """
    for title, candidates in cases:
        seconds = _interleaved_seconds(candidates, runs)
        yield [
            Row(
                title,
                name,
                seconds[name],
                _saved_bytes(candidate),
                _peak_bytes(candidate, device),
                stage_seconds(candidate) if isinstance(candidate, Staged) else {},
            )
            for name, candidate in candidates.items()
        ]


def _interleaved_seconds(candidates: Mapping[str, Candidate], runs: int) -> dict[str, float]:
    """Medians. (``Timer.timeit`` would warm up before each timed call: thrice the time.)"""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(WARM_UP_ROUNDS + runs):
        for name, candidate in candidates.items():
            start = timer()  # waits for the GPU
            candidate()
            times[name].append(timer() - start)
    return {name: median(x[WARM_UP_ROUNDS:]) for name, x in times.items()}


def stage_seconds(candidate: Staged, rounds: int = 3) -> dict[str, float]:
    """Median time of each stage, in the order of the stages, and of the rest."""
    spent: dict[str, list[float]] = {name: [] for name, _, _ in candidate.stages}

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            start = timer()
            result = function(*args, **kwargs)
            spent[name][-1] += timer() - start
            return result

        return call

    rest = []
    with ExitStack() as patches:
        for name, owner, attribute in candidate.stages:
            function = timed(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, function))
        for _ in range(rounds):
            for seconds in spent.values():
                seconds.append(0.0)
            start = timer()
            candidate()
            rest.append(timer() - start - sum(x[-1] for x in spent.values()))
    return {name: median(x) for name, x in {**spent, "rest": rest}.items()}


def _saved_bytes(candidate: Candidate) -> int:
    """Bytes of all storages that autograd saves during a call, each counted once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept alive, so that no later storage gets the same address.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        candidate()
    return sum(storage.nbytes() for storage in storages.values())


def _peak_bytes(candidate: Candidate, device: torch.device) -> int | None:
    """Highest use of memory during a call, above that before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        candidate()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that malloc holds back would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        # Linux's record of this process's highest resident memory begins anew.
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    candidate()
    return max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """Bytes that Linux tells of this process."""
    (line,) = re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


def markdown(rows: Sequence[Row]) -> str:
    """A table of one case; ratios to its first candidate and, where there is one, to the copy."""
    first = rows[0]
    columns = {
        first.case: [row.candidate for row in rows],
        "time": [_milliseconds(row.seconds) for row in rows],
        f"× {first.candidate}": [f"{row.seconds / first.seconds:.2f}" for row in rows],
    }
    for copy in (row.seconds for row in rows if row.candidate == COPY):
        columns["× copy"] = [f"{row.seconds / copy:.1f}" for row in rows]
    if any(row.saved_bytes for row in rows):
        columns["saved for backward"] = [_megabytes(row.saved_bytes) for row in rows]
    columns["peak extra memory"] = [_megabytes(row.peak_bytes) for row in rows]
    for stage in dict.fromkeys(name for row in rows for name in row.stages):
        columns[stage] = [_milliseconds(row.stages.get(stage)) for row in rows]
    right = ["right"] * (len(columns) - 1)
    return tabulate(columns, "keys", "pipe", colalign=["left", *right], disable_numparse=True)


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def _megabytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 1e6:,.1f} MB"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    description: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": (models or [platform.processor()])[0],
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bf16_support(device.type)[1],
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """The precisions to compare, by name, the fastest first; bf16 only where it is native."""
    is_native, reason = bf16_support(device.type)
    if is_native:
        return {"bf16": torch.bfloat16, "fp32": torch.float32}
    print(f"bf16: left out, emulated: {reason}", flush=True)
    return {"fp32": torch.float32}
