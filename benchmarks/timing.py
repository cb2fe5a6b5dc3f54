"""How candidates for one job are measured side by side, and how the figures are shown. A case is a
title and candidates by name, each a function that does the whole job when called. They run in one
process, in turn, round after round, so that a change in the machine's load meets all of them."""

import ctypes
import datetime
import gc
import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import timer

from focal_retina.engine.precision import bf16_support

Candidate = Callable[[], object]
Case = tuple[str, Mapping[str, Candidate]]

COPY = "copy of the logits"  # the floor of what a loss takes
WARM_UP_ROUNDS = 2


class Row(NamedTuple):
    """What was measured of one candidate."""

    case: str
    candidate: str
    seconds: float  # median of the runs
    saved_bytes: int  # what autograd keeps for backward
    peak_bytes: float  # highest use of memory above that before the call; NaN: not measured


def measure(
    title: str, candidates: Mapping[str, Candidate], device: torch.device, runs: int
) -> list[Row]:
    """Measure one case, with ``runs`` timed calls of each candidate after two that are not."""
    # Timer.timeit would warm up before each timed call, which takes three times as long.
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(WARM_UP_ROUNDS + runs):
        for name, candidate in candidates.items():
            start = timer()  # waits for the GPU
            candidate()
            times[name].append(timer() - start)
    return [
        Row(title, name, median(seconds[WARM_UP_ROUNDS:]), *_memory(candidates[name], device))
        for name, seconds in times.items()
    ]


def _memory(candidate: Candidate, device: torch.device) -> tuple[int, float]:
    """Bytes of all storages that autograd saves during a call, each counted once; and the highest
    use of memory during another, above that before it."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept alive, so that no later storage gets the same address.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        candidate()
    saved = sum(storage.nbytes() for storage in storages.values())
    storages.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        candidate()
        return saved, torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that malloc holds back would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        # Linux's record of this process's highest resident memory begins anew.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return saved, math.nan
    before = _process_bytes("VmRSS")
    candidate()
    return saved, max(_process_bytes("VmHWM") - before, 0)


def _process_bytes(name: str) -> int:
    (kib,) = re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def markdown(rows: Sequence[Row]) -> str:
    """A table of one case, with ratios to its first candidate."""
    first = rows[0]
    columns = {
        first.case: [row.candidate for row in rows],
        "time": [f"{1e3 * x.seconds:,.{2 if x.seconds < 0.1 else 0}f} ms" for x in rows],
        f"× {first.candidate}": [f"{row.seconds / first.seconds:.2f}" for row in rows],
        "saved for backward": [f"{row.saved_bytes / 1e6:,.1f} MB" for row in rows],
        "peak extra memory": [f"{row.peak_bytes / 1e6:,.1f} MB" for row in rows],
    }
    right = ["right"] * (len(columns) - 1)
    return tabulate(columns, "keys", "pipe", colalign=["left", *right], disable_numparse=True)


def machine(device: torch.device) -> str:
    """What the figures depend on."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    cpu = model[1] if model else platform.processor()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return (
        f"{datetime.date.today()}, {gpu}{cpu} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]}, "
        f"bf16: {bf16_support(device.type)[1]}, torch {torch.__version__}"
    )


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """The precisions to compare, by name, the fastest first; bf16 only where it is native."""
    is_native, reason = bf16_support(device.type)
    if is_native:
        return {"bf16": torch.bfloat16, "fp32": torch.float32}
    print(f"bf16: left out, emulated: {reason}", flush=True)
    return {"fp32": torch.float32}
