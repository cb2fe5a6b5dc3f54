"""The image files of a data set: whether they are there, and whether they can be read."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import detection_utils
from tqdm import tqdm

_SEED = 0
_DECODED_AT_ONCE = 64  # images between two moments at which Ctrl-C is heard


@dataclass(frozen=True)
class ImageFiles:
    """What is known of a data set's files; images go by their index."""

    missing: list[int] = field(default_factory=list)  # images without a regular file
    unreadable: dict[int, str] = field(default_factory=dict)  # why an image cannot be decoded
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Width and height of the images that were decoded."""

    @property
    def num_decoded(self) -> int:
        return len(self.unreadable) + len(self.sizes)


def inspect_images(file_names: list[str], num_decoded: int) -> ImageFiles:
    """Look for every file, and decode some or all.

    Args:
        file_names: paths, or URLs, which count as present.
        num_decoded: how many images to decode, drawn with a fixed seed; below 0: all. Empty files
            are always among them.
    """
    file_sizes = [1 if "://" in name else _file_size(name) for name in file_names]
    sample = [index for index, size in enumerate(file_sizes) if size is not None]
    if 0 <= num_decoded < len(sample):
        drawn = np.random.default_rng(_SEED).choice(sample, num_decoded, replace=False)
        sample = sorted({*drawn.tolist(), *(i for i, size in enumerate(file_sizes) if size == 0)})
    outcomes = dict(zip(sample, _decode([file_names[i] for i in sample]), strict=True))
    return ImageFiles(
        missing=[index for index, size in enumerate(file_sizes) if size is None],
        unreadable={index: x for index, x in outcomes.items() if isinstance(x, str)},
        sizes={index: x for index, x in outcomes.items() if not isinstance(x, str)},
    )


def _file_size(file_name: str) -> int | None:
    """Bytes; None where there is no regular file."""
    try:
        status = os.stat(file_name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    # Opening a pipe or a device could wait forever.
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _decode(file_names: list[str]) -> list[tuple[int, int] | str]:
    """Width and height of each image, or why it cannot be decoded."""
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
