"""The image files: whether they are there, and whether they can be read."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from detectron2.data import detection_utils
from tqdm import tqdm

from .annotations import finding
from .report import Case, Finding
from .table import AnnotationTable

_SEED = 0
_DECODED_AT_ONCE = 64  # images between two moments at which Ctrl-C is heard


class FileState(NamedTuple):
    """What tells that a file has changed."""

    size: int
    modified_ns: int


def file_states(file_names: list[str]) -> list[FileState | None]:
    """State of each file; None where there is no regular file. Unknown, (-1, -1), for a URL."""
    return [FileState(-1, -1) if "://" in name else _file_state(name) for name in file_names]


def _file_state(file_name: str) -> FileState | None:
    try:
        status = os.stat(file_name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    # Opening a pipe or a device could wait forever.
    return FileState(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def check_images(
    table: AnnotationTable, states: list[FileState | None], num_decoded: int | None
) -> tuple[list[Finding], list[str], int]:
    """Look for missing files, and decode some or all of the others.

    Args:
        table: N images.
        states: of :func:`file_states`, (N,).
        num_decoded: how many images to decode, drawn with a fixed seed; None: all.

    Returns:
        The findings, the paths of images that can't be used, and how many were decoded.
    """
    missing = [index for index, state in enumerate(states) if state is None]
    present = np.array([i for i, state in enumerate(states) if state is not None], dtype=np.int64)
    sample = present
    if num_decoded is not None and num_decoded < len(present):
        drawn = np.random.default_rng(_SEED).choice(present, num_decoded, replace=False)
        empty = [i for i, state in enumerate(states) if state is not None and state.size == 0]
        sample = np.union1d(drawn, empty).astype(np.int64)

    unreadable: dict[int, str] = {}
    wrong_size: dict[int, str] = {}
    for index, outcome in zip(
        sample.tolist(), _decode([table.file_names[i] for i in sample]), strict=True
    ):
        if isinstance(outcome, str):
            unreadable[index] = outcome
        elif (outcome != table.image_sizes[index]).any() and np.isfinite(
            table.image_sizes[index]
        ).all():
            wrong_size[index] = "annotated as {:g}×{:g}, is {}×{}".format(
                *table.image_sizes[index], *outcome
            )

    def case(index: int) -> Case:
        why = unreadable.get(index) or wrong_size.get(index) or "no such file"
        return Case(table.file_names[index], f"image {table.image_ids[index]}", why)

    findings = [
        finding("missing_image", missing, case),
        finding("unreadable_image", list(unreadable), case),
        finding("wrong_size", list(wrong_size), case),
    ]
    bad_sizes = np.flatnonzero((table.image_sizes <= 0).any(axis=1)).tolist()
    unusable = sorted({*missing, *unreadable, *wrong_size, *bad_sizes})
    return (
        [f for f in findings if f.count],
        [table.file_names[index] for index in unusable],
        len(sample),
    )


def _decode(file_names: list[str]) -> list[tuple[int, int] | str]:
    """Width and height of each image, or why it can't be decoded."""
    outcomes: list[tuple[int, int] | str] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow decodes without the GIL
        tqdm(total=len(file_names), desc="decoding images", delay=5, unit="image") as progress,
    ):
        for start in range(0, len(file_names), _DECODED_AT_ONCE):
            chunk = file_names[start : start + _DECODED_AT_ONCE]
            outcomes += pool.map(_decode_one, chunk)
            progress.update(len(chunk))
    return outcomes


def _decode_one(file_name: str) -> tuple[int, int] | str:
    try:
        # Detectron2's reader, so that it turns the image as the mapper will (EXIF).
        height, width = detection_utils.read_image(file_name, format="BGR").shape[:2]
    except Exception as error:  # Pillow's decoders raise whatever their format suggests
        return " ".join(f"{type(error).__name__}: {error}".split())
    return width, height
