"""Memory for the gradients that the kernels write."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["GRADIENT_SCALE", "empty_gradient"]

# A saved gradient waits for the factor that backward multiplies by. In fp16, those of the easy
# negatives would round to zero before a loss scaler could lift them, so that fp16 keeps them 2^12
# times as large. The steepest slope is below 2, which leaves room for weights up to 8.
GRADIENT_SCALE = {torch.float16: 2.0**12}

_HUGE_PAGE = 2 << 20


def empty_gradient(logits: Tensor) -> Tensor:
    """An uninitialised tensor like ``logits``, in huge pages where Linux grants them.

    A large CPU tensor comes in fresh pages, and the first touch of 4 KiB after 4 KiB takes longer
    than computing the gradient that goes into them.
    """
    gradient = torch.empty_like(logits)
    if gradient.device.type == "cpu" and gradient.nbytes >= 2 * _HUGE_PAGE:
        _advise_huge_pages(gradient.untyped_storage())
    return gradient


def _advise_huge_pages(storage: torch.UntypedStorage) -> None:
    # Whole pages only, so that nothing but this storage is concerned. It is advice: a kernel
    # without huge pages refuses it, and nothing is lost.
    begin = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise := _madvise():
        advise(begin, end - begin, mmap.MADV_HUGEPAGE)


@functools.lru_cache(maxsize=1)
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
