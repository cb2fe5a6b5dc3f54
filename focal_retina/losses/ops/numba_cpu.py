"""The dense losses on the CPU, fp32 and bf16: each logit is read once, each gradient written once.

Numba compiles the loop at the first call, in about a second, with the LLVM in its wheel: a compiler
is not needed. A block of anchors is computed as if all were background, in vector registers. The
few wrong entries, of ignored anchors and of anchors' own classes, are corrected before the block is
summed: to subtract them from the sum would cancel digits.
"""

# mypy: disable-error-code="no-untyped-def"
# (what Numba compiles has Numba's types)
import collections
import contextlib
import functools
import itertools
import math
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from . import Formula, Levels

# Logits, losses and gradients of a block fit into a core's first-level cache.
_BLOCK = 2048
# What a thread takes at a time.
_CHUNK = 1 << 19
# No reassociation: the range reduction of exp depends on the order of its operations.
_FAST_MATH = {"nsz", "arcp", "contract"}


def loss_and_gradients(
    logits: Levels, labels: Levels, needs_grad: bool, formula: Formula, weights: Tensor
) -> tuple[Tensor, Levels]:
    """See :mod:`focal_retina.losses.ops`."""
    gradients = [_empty_like(x) for x in logits] if needs_grad else []
    name, gamma, beta = formula
    formulas = {"focal": _FOCAL_OF_GAMMA.get(gamma, _focal), "focal_star": _focal_star}
    loss_sum = _compile(formulas[name], logits[0].dtype == torch.bfloat16)
    arrays = weights.numpy()  # each of (K,), or (1,) where all classes weigh the same
    levels = itertools.zip_longest(logits, labels, gradients)
    chunks = iter([chunk for level in levels for chunk in _chunks(*level)])
    sums = _on_each_thread(lambda: [loss_sum(*x, _F(gamma), _F(beta), *arrays) for x in chunks])
    # Exact until it is rounded once, whichever thread took which chunk.
    return torch.tensor(math.fsum(itertools.chain(*sums)), dtype=torch.float32), gradients


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """See :mod:`focal_retina.losses.ops`."""
    number = factor.item()
    chunks: list[Tensor] = []
    for gradient in gradients if number != 1 else []:
        if gradient.dtype == torch.bfloat16 and gradient.is_contiguous():
            # ATen takes thrice as long for bf16 as for fp32.
            chunks += gradient.view(-1).split(_CHUNK)
        else:
            gradient.mul_(number)
    if chunks:
        left = iter(chunks)
        _on_each_thread(lambda: [_scale_bf16(_as_numpy(x), _F(number)) for x in left])


def _chunks(
    logits: Tensor, labels: Tensor, gradient: Tensor | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits, labels, gradient) of some anchors each; an empty gradient is not computed."""
    x = _as_numpy(logits).reshape(-1, logits.shape[2])
    g = x[:0] if gradient is None else _as_numpy(gradient).reshape(x.shape)
    y = labels.reshape(-1).numpy()
    step = max(_CHUNK // logits.shape[2], 1)
    return [(x[i : i + step], y[i : i + step], g[i : i + step]) for i in range(0, len(x), step)]


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's memory; that of bf16 as int16, since NumPy has no bf16."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _on_each_thread(work: Callable[[], list]) -> list[list]:
    """The results of ``work``, called at once on as many threads as ATen uses. They wait for each
    other only once: a wait lasts milliseconds while a data loader holds a core."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return [work()]
    futures = [_pool(num_threads).submit(work) for _ in range(num_threads)]
    return [future.result() for future in futures]


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "focal_retina_loss")


# A forked child has the pool, but not its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


# The memory of smaller tensors is kept by malloc itself.
_SMALLEST_BLOCK = 4 << 20
# For the levels of a few losses; older blocks go back to the system.
_free_blocks: collections.deque[np.ndarray] = collections.deque(maxlen=8)


def _empty_like(logits: Tensor) -> Tensor:
    """An uninitialised tensor like ``logits``, row-major, in the memory of earlier gradients: the
    first touch of a page takes as long as computing its part of the gradient."""
    if logits.nbytes < _SMALLEST_BLOCK:
        return torch.empty_like(logits)
    block = _take_block(logits.nbytes)
    array = block[: logits.nbytes]
    # The tensor keeps the array; when both are gone, the block is free again.
    weakref.finalize(array, _free_blocks.append, block).atexit = False
    return torch.from_numpy(array).view(logits.dtype).view(logits.shape)


def _take_block(size: int) -> np.ndarray:
    with contextlib.suppress(IndexError):  # another thread may have been faster
        for _ in range(len(_free_blocks)):
            block = _free_blocks.popleft()
            if size <= len(block) <= 2 * size:
                return block
            _free_blocks.append(block)
    return np.empty(size, np.uint8)  # in huge pages, for which NumPy asks the system


_F, _I = np.float32, np.int32
_LOG2_E = _F(1.4426950408889634)
# ln 2 in two parts; the product of the first with a small integer is exact.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_SMALLEST_EXPONENT = _F(-87.0)
# By least squares on Chebyshev nodes: (e^r - 1) / r by r for |r| <= ln(2) / 2, to 6e-9, and
# 2·artanh(s) / s by s² for s <= 1/3, to 8e-9.
_EXP = 1.00000001, 0.500000005, 0.166665052, 0.0416663527, 0.00836915816, 0.00139411214
_ARTANH = 2.00000001, 0.666663159, 0.400248537, 0.279614188, 0.281746573
_EXP, _ARTANH = tuple(map(_F, _EXP)), tuple(map(_F, _ARTANH))


@njit(inline="always")
def _exp_of_negative(x):
    """exp(x) for x <= 0, within 2 units in the last place; 0 below -87."""
    clipped = max(x, _SMALLEST_EXPONENT)
    n = np.rint(clipped * _LOG2_E)
    r = clipped - n * _LN2_HIGH - n * _LN2_LOW
    c0, c1, c2, c3, c4, c5 = _EXP
    p = (((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + c0) * r + _F(1)
    scaled = _I(_F(p).view(np.int32) + (_I(n) << _I(23))).view(np.float32)
    return scaled if x >= _SMALLEST_EXPONENT else _F(0)


@njit(inline="always")
def _sigmoid_and_softplus(z):
    """σ(z), σ(-z), softplus(z), softplus(-z)."""
    e = _exp_of_negative(-abs(z))
    larger = _F(1) / (_F(1) + e)
    smaller = e * larger
    # log(1 + e) = 2·artanh(e / (2 + e))
    s = e / (_F(2) + e)
    q = s * s
    c0, c1, c2, c3, c4 = _ARTANH
    log1p = s * ((((c4 * q + c3) * q + c2) * q + c1) * q + c0)
    is_positive = z >= _F(0)
    return (
        larger if is_positive else smaller,
        smaller if is_positive else larger,
        max(z, _F(0)) + log1p,
        max(-z, _F(0)) + log1p,
    )


# A loss and its slope, the derivative by z = -x_t (paper section 3 and appendix A):
#   FL:  σ(z)^γ·softplus(z),     σ(z)^γ·(σ(z) + γ·softplus(z)·σ(-z)),  where σ(z) = e^-softplus(-z)
#   FL*: softplus(γ·z - β) / γ,  σ(γ·z - β)
# The derivative by x is the slope for a negative and minus the slope for a positive.
@njit(inline="always")
def _focal(z, gamma, beta):
    p, q, softplus, softplus_of_minus = _sigmoid_and_softplus(z)
    modulation = _exp_of_negative(-gamma * softplus_of_minus)
    return modulation * softplus, modulation * (p + gamma * softplus * q)


@njit(inline="always")
def _focal_of_gamma_2(z, gamma, beta):
    p, q, softplus, _ = _sigmoid_and_softplus(z)
    return p * p * softplus, p * p * (p + gamma * softplus * q)


@njit(inline="always")
def _cross_entropy(z, gamma, beta):
    p, _, softplus, _ = _sigmoid_and_softplus(z)
    return softplus, p


@njit(inline="always")
def _focal_star(z, gamma, beta):
    p, _, softplus, _ = _sigmoid_and_softplus(gamma * z - beta)
    return softplus / gamma, p


_FOCAL_OF_GAMMA = {0.0: _cross_entropy, 2.0: _focal_of_gamma_2}


@njit(inline="always")
def _load_fp32(value):
    return value


@njit(inline="always")
def _load_bf16(value):
    return _I(_I(value) << _I(16)).view(np.float32)


@njit(inline="always")
def _store_bf16(value):
    """Rounded to the nearest bf16, ties to even."""
    bits = _F(value).view(np.int32)
    return np.int16((bits + _I(0x7FFF) + ((bits >> _I(16)) & _I(1))) >> 16)


@njit(nogil=True)
def _scale_bf16(values, factor):
    for i in range(len(values)):
        values[i] = _store_bf16(_load_bf16(values[i]) * factor)


# Reordered, so that it is vectorised; not more, because a loss that is NaN must stay NaN.
@njit(nogil=True, fastmath={"reassoc", "nsz"})
def _sum(values):
    total = 0.0  # fp64
    for value in values:
        total += value
    return total


@functools.cache
def _compile(formula: Any, is_bf16: bool) -> Callable[..., float]:
    load, store = (_load_bf16, _store_bf16) if is_bf16 else (_load_fp32, _load_fp32)

    @njit(nogil=True, fastmath=_FAST_MATH, error_model="numpy")
    def as_background(x, losses, slopes, gamma, beta, weight):
        for i in range(len(x)):
            loss, slope = formula(load(x[i]), gamma, beta)
            losses[i] = weight * loss
            slopes[i] = store(weight * slope)

    @njit(nogil=True, fastmath=_FAST_MATH, error_model="numpy")
    def loss_sum(logits, labels, gradient, gamma, beta, positive_weight, negative_weight):
        num_anchors, num_classes = logits.shape
        step = max(_BLOCK // num_classes, 1)
        losses = np.empty((step, num_classes), np.float32)
        unwanted = np.empty((step, num_classes), logits.dtype)
        per_class = len(negative_weight) > 1
        total = 0.0
        for begin in range(0, num_anchors, step):
            end = min(begin + step, num_anchors)
            size = (end - begin) * num_classes
            slopes = gradient[begin:end] if len(gradient) else unwanted[: end - begin]
            x, block_losses = logits[begin:end].reshape(size), losses.reshape(-1)[:size]
            weight = _F(1) if per_class else negative_weight[0]
            as_background(x, block_losses, slopes.reshape(size), gamma, beta, weight)
            for row in range(end - begin):
                if per_class:
                    for k in range(num_classes):
                        losses[row, k] *= negative_weight[k]
                        slopes[row, k] = store(load(slopes[row, k]) * negative_weight[k])
                k = labels[begin + row]
                if k < 0:
                    losses[row] = 0
                    slopes[row] = 0
                elif k < num_classes:
                    loss, slope = formula(-load(logits[begin + row, k]), gamma, beta)
                    own_weight = positive_weight[k if len(positive_weight) > 1 else 0]
                    losses[row, k] = own_weight * loss
                    slopes[row, k] = store(-own_weight * slope)
            total += _sum(block_losses)
        return total

    return loss_sum
