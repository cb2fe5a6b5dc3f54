"""The numbers of a training, out of the metrics.json that Detectron2 writes as it goes."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

_logger = logging.getLogger(__name__)


class Series(NamedTuple):
    """One scalar over the training, iterations ascending."""

    iterations: list[int]
    values: list[float]


def read_metrics(metrics_json: Path) -> dict[str, Series]:
    """Read a metrics.json: one json object per line, each with its "iteration".

    A resumed training appends to the file and starts at its last checkpoint. Where a scalar's
    iterations jump back, the resumed run replaces what the interrupted one had written from there.

    Returns:
        Scalar's name -> series. A line that is cut off (its writer was killed) is left out, with a
        warning.

    Raises:
        ValueError: the file holds no metrics at all.
    """
    metrics: dict[str, Series] = {}
    with open(metrics_json, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                iteration = int(row.pop("iteration"))
            except (ValueError, TypeError, AttributeError, KeyError):
                _logger.warning("%s, line %d is cut off and left out", metrics_json, number)
                continue
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    _append(metrics.setdefault(name, Series([], [])), iteration, float(value))
    if not metrics:
        raise ValueError(f"{metrics_json} holds no metrics")
    return metrics


def _append(series: Series, iteration: int, value: float) -> None:
    while series.iterations and series.iterations[-1] >= iteration:
        series.iterations.pop()
        series.values.pop()
    series.iterations.append(iteration)
    series.values.append(value)
