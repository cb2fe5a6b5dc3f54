"""Images that look alike, by a perceptual hash: ImageHash's ``phash`` of 256 bits.

Recompressing, resizing, brightening by a fifth and cutting off a border of 1% change up to 30 bits;
different photographs, microscope images and generated shapes differed in 54 bits or more. A hash is
float32 (256,) of 1 and -1, so that one product compares many.
"""

import os
from collections.abc import Sequence
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
_AT_ONCE = 256  # rows of a comparison


def image_hash(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The hash of an image (H, W, 1)."""
    bits = imagehash.phash(Image.fromarray(gray[..., 0]), round(HASH_BITS**0.5)).hash.ravel()
    return np.where(bits, np.float32(1), np.float32(-1))


def hash_images(file_names: Sequence[str]) -> NDArray[np.float32]:
    """Hashes (N, 256). ValueError: an image cannot be read."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        hashes = pool.map(_hash_file, file_names)
        progress = tqdm(hashes, "comparing images", len(file_names), delay=5, unit="image")
        return np.array(list(progress), dtype=np.float32).reshape(-1, HASH_BITS)


def _hash_file(file_name: str) -> NDArray[np.float32]:
    try:
        return image_hash(read_image(file_name, "L"))
    except Exception as error:  # Pillow's decoders raise whatever their format suggests
        raise ValueError(
            f"{file_name} can't be read: {in_one_line(error)}; focal-retina check lists such images"
        ) from error


def differing_bits(hashes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """In how many bits N hashes differ from M others, (N, M)."""
    return (HASH_BITS - hashes @ others.T) / 2


def near_duplicate_groups(hashes: NDArray[np.float32]) -> NDArray[np.int64]:
    """The group of each image, (N,): near-duplicates, and near-duplicates of those, share one."""
    groups = np.arange(len(hashes))
    for start in range(0, len(hashes), _AT_ONCE):
        bits = differing_bits(hashes[start : start + _AT_ONCE], hashes[start:])
        edges = tuple(groups[start + x] for x in np.nonzero(bits <= NEAR))
        graph = coo_array((np.ones(len(edges[0])), edges), shape=2 * groups.shape)
        groups = connected_components(graph, directed=False)[1][groups]
    return groups
