"""Memory for the gradients that the kernels write."""

import collections
import contextlib
import math
import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

# A saved gradient waits for the factor that backward multiplies by. In fp16, those of the easy
# negatives would round to zero before a loss scaler could lift them, so that fp16 keeps them 2^12
# times as large. The steepest slope is below 2, which leaves room for weights up to 8.
GRADIENT_SCALE = {torch.float16: 2.0**12}

# Smaller tensors come out of malloc's own memory, which it does keep.
_SMALLEST_BLOCK = 4 << 20
# The levels of a few losses; older ones go back to the system.
_MOST_FREE_BLOCKS = 8

_free_blocks: collections.deque[mmap.mmap] = collections.deque(maxlen=_MOST_FREE_BLOCKS)


def empty_gradient(logits: Tensor) -> Tensor:
    """An uninitialised tensor like ``logits``, on the CPU in memory that earlier gradients left.

    malloc returns a large tensor to the system, and the next iteration's comes in fresh pages,
    whose first touch takes as long as computing the gradient that goes into them.
    """
    is_large = logits.nbytes >= _SMALLEST_BLOCK and hasattr(mmap, "MAP_PRIVATE")
    if logits.device.type != "cpu" or not is_large or not logits.is_contiguous():
        return torch.empty_like(logits)
    block = _take_block(logits.nbytes)
    array = np.frombuffer(block, dtype=np.uint8, count=logits.nbytes)
    # The tensor keeps the array; when both are gone, the block is free again.
    weakref.finalize(array, _free_blocks.append, block).atexit = False
    return torch.from_numpy(array).view(logits.dtype).view(logits.shape)


def _take_block(size: int) -> mmap.mmap:
    for block in list(_free_blocks):
        if size <= len(block) <= 2 * size:
            # Another thread may have been faster.
            with contextlib.suppress(ValueError):
                _free_blocks.remove(block)
                return block
    # Private: shared pages would be common to this process and its forks.
    pages = math.ceil(size / mmap.PAGESIZE)
    block = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice, which a system may not know
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
