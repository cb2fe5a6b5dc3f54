"""What only the compiled kernel does: functions of its own, rounding to bf16, and what it declines.

That its numbers are right is shown in test_dense_loss.py.
"""

import numpy as np
import pytest
import torch
from numba import njit

from focal_retina.losses.kernels import Focal, blocked, compiled


def apply(function, values):
    """``function`` over fp32 values, as the kernel's loop would call it."""

    @njit
    def loop(values, results):
        for i in range(len(values)):
            results[i] = function(values[i])

    results = np.empty_like(values)
    loop(values, results)
    return results


def test_exp_is_good_to_two_units_in_the_last_place():
    x = np.concatenate([-np.geomspace(1e-6, 87, 20_000), [0.0, -1e4, -np.inf]]).astype(np.float32)
    actual, expected = apply(compiled._exp_of_negative, x), np.exp(x.astype(np.float64))
    np.testing.assert_allclose(actual, expected, rtol=2**-22, atol=2e-38)


def test_rounding_to_bf16_is_torchs():
    """To the nearest, ties to even, over every exponent."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 0x7F000000, 100_000).astype(np.int32)
    ties = (bits & ~np.int32(0xFFFF)) | np.int32(0x8000)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = np.concatenate([values, -values])

    @njit
    def store(values, results):
        for i in range(len(values)):
            results[i] = compiled._store_bf16(values[i])

    actual = np.empty(len(values), np.int16)
    store(values, actual)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("factor", [0.3, 1.0, -7.0])
def test_scaling_bf16_is_torchs(factor):
    gradient = torch.randn(3, 500, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = gradient * factor
    compiled.scale_(gradient, torch.tensor(factor))
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_what_it_declines_is_done_by_the_blocked_kernel(dtype):
    x = torch.randn(1, 5, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.transpose(1, 2) if dtype == torch.float32 else x  # it takes row-major fp32 only
    labels = [torch.zeros(x.shape[:2], dtype=torch.int64)]
    arguments = ([x], labels, [True], Focal(2.0), 0.25, 0.75)
    (total, (gradient,)) = compiled.loss_and_gradients(*arguments)
    (expected, (expected_gradient,)) = blocked.loss_and_gradients(*arguments)
    assert total == expected
    assert torch.equal(gradient, expected_gradient)


def test_the_sum_does_not_depend_on_the_threads():
    x = torch.randn(2, 30_000, 40, generator=torch.Generator().manual_seed(0))
    labels = [torch.randint(-1, 41, x.shape[:2], generator=torch.Generator().manual_seed(1))]
    totals = {
        compiled.loss_and_gradients([x], labels, [False], Focal(2.0), 0.25, 0.75)[0].item()
        for _ in range(5)
    }
    assert len(totals) == 1
