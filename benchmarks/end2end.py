"""JPEG files to updated weights, in one process: nothing is loaded ahead, so that the data's time
is seen in full."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .inputs import Size, write_jpegs
from .loader import endless_batches, make_mappers
from .timing import Case
from .train import SIZES, step_candidates

__all__ = ["SIZES", "cases"]
NUM_FILES = 16


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Our step after the mapper on OpenCV, and Detectron2's after its own."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            records = write_jpegs(size._replace(images=NUM_FILES), Path(folder))
            mappers = make_mappers(size, (min(size.height, size.width),))
            batches = [endless_batches(mapper, records, size.images) for mapper in mappers]
            yield f"files to a train step, {size.title}", step_candidates(device, size, *batches)
