"""How candidates for one job are measured side by side, and how the figures are shown.

A case is a title and candidates by name, each a function that does the whole job when called. All
candidates of a case run in one process, in turn, round after round, so that a change in the
machine's load meets all of them.
"""

import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stages import StagedCandidate, stage_seconds

Candidate = Callable[[], object]
Case = tuple[str, Mapping[str, Candidate]]

# The candidate of this name is the floor that others are compared with.
COPY = "copy of the logits"
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate."""

    case: str
    candidate: str
    seconds: float  # median of the runs
    saved_bytes: int  # what autograd keeps for backward
    peak_bytes: int | None  # highest use of memory above that before the call; None: not measured
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds; empty: not measured


def measure(cases: Iterable[Case], device: torch.device, runs: int) -> Iterable[list[Row]]:
    """Measure one case after another.

    Args:
        cases: made one at a time, so that only one's inputs are in memory.
        device: where the candidates work.
        runs: timed calls of each candidate, after two that aren't.

    Yields:
        of each case the rows in the order of its candidates.
    """
    for title, candidates in cases:
        seconds = _seconds(list(candidates.values()), device, runs)
        yield [
            Row(
                title,
                name,
                median,
                _saved_bytes(candidate),
                _peak_bytes(candidate, device),
                stage_seconds(candidate, device) if isinstance(candidate, StagedCandidate) else {},
            )
            for (name, candidate), median in zip(candidates.items(), seconds, strict=True)
        ]


def _seconds(candidates: Sequence[Candidate], device: torch.device, runs: int) -> list[float]:
    """Median time of each, in interleaved rounds."""
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(WARM_UP_ROUNDS + runs):
        for candidate, its_times in zip(candidates, times, strict=True):
            _synchronize(device)
            start = time.perf_counter()
            candidate()
            _synchronize(device)
            its_times.append(time.perf_counter() - start)
    return [statistics.median(its_times[WARM_UP_ROUNDS:]) for its_times in times]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        candidate()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _reset_peak_resident_memory():
        return None
    before = _resident_memory("VmRSS")
    candidate()
    return max(_resident_memory("VmHWM") - before, 0)


def _reset_peak_resident_memory() -> bool:
    """Let Linux's record of this process's highest resident memory begin anew, where it can."""
    try:
        # Freed memory that malloc holds back would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _resident_memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.removesuffix("kB"))
    raise RuntimeError(f"/proc/self/status has no {field}")


def markdown(rows: Sequence[Row]) -> str:
    """A table of one case; ratios to its first candidate and, where there is one, to the copy."""
    ours = rows[0].seconds
    copies = [row.seconds for row in rows if row.candidate == COPY]
    saves = any(row.saved_bytes for row in rows)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        (rows[0].case, lambda row: row.candidate),
        ("time", lambda row: _milliseconds(row.seconds)),
        (f"× {rows[0].candidate}", lambda row: f"{row.seconds / ours:.2f}"),
    ]
    if copies:
        columns.append(("× copy", lambda row: f"{row.seconds / copies[0]:.1f}"))
    if saves:
        columns.append(("saved for backward", lambda row: _megabytes(row.saved_bytes)))
    columns.append(("peak extra memory", lambda row: _megabytes(row.peak_bytes)))
    stages = dict.fromkeys(name for row in rows for name in row.stages)
    columns += [(name, partial(_stage_milliseconds, name)) for name in stages]
    lines = [[name for name, _ in columns], ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[show(row) for _, show in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _stage_milliseconds(stage: str, row: Row) -> str:
    return _milliseconds(row.stages[stage]) if stage in row.stages else "not measured"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def _megabytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 1e6:,.1f} MB"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    description: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "load average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def _cpu_model() -> str:
    """The model's name; on Linux only /proc knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(path: Path, description: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """All that was measured, in bytes and seconds."""
    contents = {"machine": description, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(contents, indent=2) + "\n")
