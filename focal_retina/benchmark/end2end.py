"""What ``tools/benchmark.py end2end`` measures: JPEG files to updated weights, in one process.

Nothing is loaded ahead in another process, so the data's time is seen in full.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .loader import jpeg_records, mapped, mapper_pair
from .loss import Size
from .timing import Case
from .train import DEFAULT_SIZE, step_candidates

NUM_FILES = 16


def comparison_cases(device: torch.device, size: Size = DEFAULT_SIZE) -> Iterator[Case]:
    """Our step after the mapper on OpenCV, and Detectron2's after its own.

    Yields:
        a title and the candidates by name, ours first.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = jpeg_records(replace(size, images=NUM_FILES), Path(folder))
        opencv, stock = mapper_pair(size, (min(size.height, size.width),))
        candidates = step_candidates(
            device,
            size,
            mapped(opencv, records, size.images),
            mapped(stock, records, size.images),
        )
        yield f"files to a train step, {size.title}", candidates
