"""What only the CPU kernel does: its arithmetic, its threads, and the memory of its gradients.

That its numbers are right is shown in test_ops.py.
"""

import gc
import multiprocessing

import numpy as np
import pytest
import torch
from numba import njit

from focal_retina.losses.ops import numba_cpu


def test_exp_is_good_to_two_units_in_the_last_place():
    exp = numba_cpu._exp_of_negative

    @njit
    def loop(values, results):  # as the kernel calls it
        for i in range(len(values)):
            results[i] = exp(values[i])

    x = np.concatenate([-np.geomspace(1e-6, 87, 20_000), [0.0, -1e4, -np.inf]]).astype(np.float32)
    loop(x, actual := np.empty_like(x))
    np.testing.assert_allclose(actual, np.exp(x.astype(np.float64)), rtol=2**-22, atol=2e-38)


@pytest.mark.parametrize("factor", [0.3, 1.0, -7.0])
def test_scaling_bf16_is_torchs(factor):
    values = torch.randn(3, 500, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    for gradient in (values.clone(), values.transpose(1, 2)):
        expected = gradient * factor
        numba_cpu.scale_([gradient], torch.tensor(factor))
        assert torch.equal(gradient, expected)


def loss_of_zeros():
    """Of eight logits, each at log 2."""
    x, y = torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.int64)
    weights = torch.ones(2, 1)
    return numba_cpu.loss_and_gradients([x], [y], False, ("focal", 0.0, 0.0), weights)[0].item()


def test_a_forked_child_starts_its_own_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert loss_of_zeros() == pytest.approx(8 * 0.6931472)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(loss_of_zeros()), daemon=True)
    child.start()
    assert queue.get(timeout=60) == pytest.approx(8 * 0.6931472)
    child.join(60)
    assert child.exitcode == 0


def test_a_freed_gradients_memory_serves_the_next():
    numba_cpu._free_blocks.clear()
    logits = torch.zeros(1, numba_cpu._SMALLEST_BLOCK // 4, 1)
    first = numba_cpu._empty_like(logits).fill_(1)
    address, view = first.data_ptr(), first[0, 5:]
    del first
    second = numba_cpu._empty_like(logits).fill_(2)
    assert (view == 1).all() and (second == 2).all()  # a view still holds the memory
    del view
    gc.collect()
    assert numba_cpu._empty_like(logits).data_ptr() == address
