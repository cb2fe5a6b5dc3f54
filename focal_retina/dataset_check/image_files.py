"""The image files of a data set: are they there, can they be decoded, and which look alike?

Images are compared by a perceptual hash, ImageHash's ``phash`` of 256 bits. Recompressing,
resizing, brightening by a fifth and cutting off a border of 1% change up to 30 of them; different
photographs, microscope images and generated shapes differed in 54 or more.
"""

import os
from typing import Any, NamedTuple

import imagehash
import numpy as np
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from ..data.images import has_16_bits, in_one_line, read_image

HASH_BITS = 256
NEAR = 32  # bits in which near-duplicates differ at most
_AT_ONCE = 256  # rows of a comparison

Hashes = NDArray[np.float32]  # (N, HASH_BITS), of 1 and -1, so that one product compares many


class ImageFiles(NamedTuple):
    """What is known of a data set's image files, by the images' index."""

    missing: list[int]  # images without a regular file
    unreadable: dict[int, str]  # why an image cannot be decoded
    sizes: dict[int, tuple[int, int]]  # width, height of those that can
    deep: list[int]  # images of 16 bits
    hashes: dict[int, Hashes]  # (HASH_BITS,), of those that can be decoded


def inspect_images(file_names: list[str], num_decoded: int) -> ImageFiles:
    """Look for every file; URLs count as present. Decode ``num_decoded`` images, drawn with a fixed
    seed, and every empty file; below 0: all."""
    # Regular files alone: opening a pipe or a device could wait forever.
    is_local = [os.path.isfile(name) for name in file_names]
    sample = [i for i, name in enumerate(file_names) if is_local[i] or "://" in name]
    files = ImageFiles(sorted({*range(len(file_names))}.difference(sample)), {}, {}, [], {})
    if 0 <= num_decoded < len(sample):
        drawn = np.random.default_rng(0).choice(sample, num_decoded, replace=False)
        empty = [i for i in sample if is_local[i] and os.path.getsize(file_names[i]) == 0]
        sample = sorted({*drawn.tolist(), *empty})
    # Pillow decodes without the GIL.
    bar: Any = {"desc": "decoding images", "delay": 5, "unit": "image"}
    names = [file_names[i] for i in sample]
    outcomes = thread_map(_decode, names, max_workers=os.cpu_count(), **bar)
    for index, outcome in zip(sample, outcomes, strict=True):
        if isinstance(outcome, str):
            files.unreadable[index] = outcome
            continue
        files.sizes[index], files.hashes[index], is_deep = outcome
        if is_deep:
            files.deep.append(index)
    return files


def _decode(file_name: str) -> tuple[tuple[int, int], Hashes, bool] | str:
    """Width and height of an image, its hash, and whether it has 16 bits; or why it cannot be
    decoded."""
    try:
        gray = read_image(file_name, "L")[..., 0]  # turned by its EXIF, as the mapper will
        bits = imagehash.phash(Image.fromarray(gray), round(HASH_BITS**0.5)).hash.ravel()
        with PathManager.open(file_name, "rb") as file:
            is_deep = has_16_bits(Image.open(file))
        return gray.shape[::-1], np.where(bits, np.float32(1), np.float32(-1)), is_deep
    except Exception as error:  # Pillow's decoders raise whatever their format suggests
        return in_one_line(error)


def differing_bits(hashes: Hashes, others: Hashes) -> NDArray[np.float32]:
    """In how many bits N hashes differ from M others, (N, M)."""
    return (HASH_BITS - hashes @ others.T) / 2


def near_duplicate_groups(hashes: Hashes) -> NDArray[np.int64]:
    """The group of each image, (N,): near-duplicates, and near-duplicates of those, share one."""
    # Above, this would cost each command's start 50 to 90 ms.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups = np.arange(len(hashes))
    for start in range(0, len(hashes), _AT_ONCE):
        bits = differing_bits(hashes[start : start + _AT_ONCE], hashes[start:])
        edges = tuple(groups[start + x] for x in np.nonzero(bits <= NEAR))
        graph = coo_array((np.ones(len(edges[0])), edges), shape=2 * groups.shape)
        groups = connected_components(graph, directed=False)[1][groups]
    return groups
