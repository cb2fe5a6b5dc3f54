"""The memory of gradients: reused, never shared."""

import gc

import pytest
import torch

from focal_retina.losses.kernels import memory
from focal_retina.losses.kernels.memory import empty_gradient

LARGE = memory._SMALLEST_BLOCK // 4  # fp32 elements


@pytest.fixture(autouse=True)
def _no_free_blocks():
    memory._free_blocks.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, LARGE // 100, 101), (0, 4, 2)])
def test_is_like_the_logits(dtype, shape):
    logits = torch.zeros(shape, dtype=dtype)
    gradient = empty_gradient(logits)
    assert (gradient.shape, gradient.dtype, gradient.stride()) == (
        logits.shape,
        dtype,
        logits.stride(),
    )
    assert gradient.untyped_storage().nbytes() == logits.untyped_storage().nbytes()
    gradient.fill_(3)
    assert (gradient == 3).all()


def test_a_freed_gradients_memory_serves_the_next():
    logits = torch.zeros(1, LARGE, 1)
    first = empty_gradient(logits)
    address = first.data_ptr()
    view = first[0, 5:]
    del first
    assert empty_gradient(logits).data_ptr() != address  # a view still holds it
    memory._free_blocks.clear()
    del view
    gc.collect()
    assert empty_gradient(logits).data_ptr() == address


def test_living_gradients_have_memory_of_their_own():
    logits = torch.zeros(1, LARGE, 1)
    gradients = [empty_gradient(logits).fill_(i) for i in range(4)]
    assert [g.unique().tolist() for g in gradients] == [[0], [1], [2], [3]]


def test_a_block_far_too_large_is_left_alone_and_few_are_kept():
    large = empty_gradient(torch.zeros(1, 3 * LARGE, 1))
    address = large.data_ptr()
    del large
    assert empty_gradient(torch.zeros(1, LARGE, 1)).data_ptr() != address
    many = [empty_gradient(torch.zeros(1, LARGE, 1)) for _ in range(20)]
    del many
    assert len(memory._free_blocks) == memory._MOST_FREE_BLOCKS
