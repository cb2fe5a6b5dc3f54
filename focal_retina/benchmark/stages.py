"""Where the time of a candidate goes, by the functions that it calls on the way."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

REST = "rest"


@dataclass(frozen=True)
class Stage:
    """The calls of ``owner.attribute``, which are named ``name``."""

    name: str
    owner: Any
    attribute: str


@dataclass(frozen=True)
class StagedCandidate:
    """A candidate (see :mod:`.timing`) and the stages of its work; none is part of another."""

    run: Callable[[], object]
    stages: Sequence[Stage]

    def __call__(self) -> object:
        return self.run()


def stage_seconds(
    candidate: StagedCandidate, device: torch.device, runs: int = 3
) -> dict[str, float]:
    """Median time of each stage, in the order of the stages, and of the rest."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        with _recorded(candidate.stages, device) as spent:
            start = _now(device)
            candidate()
            total = _now(device) - start
        for stage in candidate.stages:
            times[stage.name].append(spent[stage.name])
        times[REST].append(total - sum(spent.values()))
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def _recorded(stages: Sequence[Stage], device: torch.device) -> Iterator[dict[str, float]]:
    """Within it, the seconds spent in each stage are added up."""
    spent: dict[str, float] = dict.fromkeys((stage.name for stage in stages), 0.0)

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            start = _now(device)
            result = function(*args, **kwargs)
            spent[name] += _now(device) - start
            return result

        return call

    with ExitStack() as stack:
        for stage in stages:
            function = timed(stage.name, getattr(stage.owner, stage.attribute))
            stack.enter_context(mock.patch.object(stage.owner, stage.attribute, function))
        yield spent


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
