"""Images that look alike, by a perceptual hash: ImageHash's ``phash`` of 256 bits.

Recompressing, resizing, brightening by a fifth and cutting off a border of 1% change up to 30 bits;
different photographs, microscope images and generated shapes differed in 62 bits or more.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from .images import in_one_line, read_image

HASH_BITS = 256
NEAR = 32  # bits in which near-duplicates differ at most
_ROWS = 256  # compared at once

Hashes = NDArray[np.bool_]  # (N, HASH_BITS)


def image_hash(gray: np.ndarray) -> Hashes:
    """The hash, bool (256,), of an image (H, W, 1), uint8."""
    return imagehash.phash(Image.fromarray(gray[..., 0]), round(HASH_BITS**0.5)).hash.ravel()


def hash_images(file_names: Sequence[str]) -> Hashes:
    """ValueError: an image cannot be read."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        hashes = pool.map(_hash_file, file_names)
        progress = tqdm(hashes, "comparing images", len(file_names), delay=5, unit="image")
        return np.array(list(progress), dtype=bool).reshape(-1, HASH_BITS)


def _hash_file(file_name: str) -> Hashes:
    try:
        return image_hash(read_image(file_name, "L"))
    except Exception as error:  # Pillow's decoders raise whatever their format suggests
        raise ValueError(
            f"{file_name} can't be read: {in_one_line(error)}; focal-retina check lists such images"
        ) from error


def _differing_bits(hashes: Hashes, others: Hashes) -> Iterator[tuple[int, np.ndarray]]:
    """In how many bits some hashes, from the given index on, differ from each other one."""
    signs, other_signs = (2 * x.astype(np.float32) - 1 for x in (hashes, others))
    for start in range(0, len(signs), _ROWS):
        yield start, (HASH_BITS - signs[start : start + _ROWS] @ other_signs.T) / 2


def nearest(hashes: Hashes, others: Hashes) -> tuple[np.ndarray, np.ndarray]:
    """Of each hash the most similar of the M > 0 others, int64 (N,), and in how many bits they
    differ, (N,)."""
    blocks = [bits for _, bits in _differing_bits(hashes, others)] or [np.zeros((0, len(others)))]
    return tuple(np.concatenate([f(x, axis=1) for x in blocks]) for f in (np.argmin, np.min))


def near_duplicate_groups(hashes: Hashes) -> NDArray[np.int64]:
    """The group of each image, (N,): near-duplicates, and near-duplicates of those, share one."""
    groups, size = np.arange(len(hashes)), len(hashes)
    for start, bits in _differing_bits(hashes, hashes):
        rows, columns = np.nonzero(bits <= NEAR)
        edges = groups[rows + start], groups[columns]
        graph = coo_array((np.ones(len(rows), dtype=bool), edges), shape=(size, size))
        groups = connected_components(graph, directed=False)[1][groups]
    return groups
