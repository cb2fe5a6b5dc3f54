"""The loss kernel for CPU: one compiled loop that reads each logit once and writes its gradient.

Numba compiles it at the first call, in about a second, with the LLVM that its wheel carries: nobody
needs a compiler. What one loop over a block computes stays in vector registers, where ``blocked``
goes through the cache once for every operation. Other dtypes than fp32 and bf16, and strided
logits, are left to ``blocked``.

R anchors of a chunk, K classes. As in ``blocked``, all anchors of a block are taken as background,
and the few for which that is wrong are set right before the block is summed.
"""

# mypy: disable-error-code="no-untyped-def"
# (what Numba compiles has Numba's types)
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from . import blocked
from .formulas import Focal, Formula
from .memory import empty_gradient
from .threads import on_each_thread

# Logits, losses and gradients of a block fit into a core's first-level cache.
_BLOCK = 2048
# What a thread takes at a time.
_CHUNK = 1 << 19

_DTYPES = (torch.float32, torch.bfloat16)
# No reassociation: the range reduction of exp lives on the order of its operations.
_FAST_MATH = {"nsz", "arcp", "contract"}


def loss_and_gradients(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: list[bool],
    formula: Formula,
    positive_weight: float | Tensor,
    negative_weight: float | Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """As :func:`.blocked.loss_and_gradients`."""
    arguments = (logits, labels, needs_grad, formula, positive_weight, negative_weight)
    is_mine = logits[0].dtype in _DTYPES and logits[0].device.type == "cpu"
    if not is_mine or not all(x.is_contiguous() for x in logits):
        return blocked.loss_and_gradients(*arguments)
    gradients = [empty_gradient(x) if n else None for x, n in zip(logits, needs_grad, strict=True)]
    num_classes = logits[0].shape[2]
    loss_sum = _compile(type(formula), formula.gamma, logits[0].dtype == torch.bfloat16)
    parameters = (np.float32(formula.gamma), np.float32(getattr(formula, "beta", 0.0)))
    weights = [_per_class(w, num_classes) for w in (positive_weight, negative_weight)]
    chunks = iter(
        [
            chunk
            for level in zip(logits, labels, gradients, strict=True)
            for chunk in _chunks(*level)
        ]
    )

    def take_chunks() -> list[float]:
        return [loss_sum(*chunk, *parameters, *weights) for chunk in chunks]

    # Exact until it is rounded, once: which thread took what makes no difference.
    total = math.fsum(itertools.chain(*on_each_thread(take_chunks)))
    return torch.tensor(total, dtype=torch.float32), [g for g in gradients if g is not None]


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """As :func:`.blocked.scale_`; ATen takes thrice as long for bf16 as for fp32."""
    if gradient.dtype != torch.bfloat16 or not gradient.is_contiguous():
        blocked.scale_(gradient, factor)
    elif (number := factor.item()) != 1:
        flat = _as_numpy(gradient).reshape(-1)
        chunks = iter([flat[i : i + _CHUNK] for i in range(0, len(flat), _CHUNK)])
        on_each_thread(lambda: [_scale_bf16(chunk, np.float32(number)) for chunk in chunks])


def _per_class(weight: float | Tensor, num_classes: int) -> np.ndarray:
    """(K,), or (1,) where all classes weigh the same."""
    if isinstance(weight, Tensor):
        return weight.detach().float().expand(num_classes).contiguous().numpy()
    return np.array([weight], dtype=np.float32)


def _chunks(
    logits: Tensor, labels: Tensor, gradient: Tensor | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits, labels, gradient) of some anchors each; an empty gradient is not to be computed."""
    x = _as_numpy(logits).reshape(-1, logits.shape[2])
    g = x[:0] if gradient is None else _as_numpy(gradient).reshape(x.shape)
    y = labels.reshape(-1).numpy()
    step = max(_CHUNK // logits.shape[2], 1)
    return [(x[i : i + step], y[i : i + step], g[i : i + step]) for i in range(0, len(x), step)]


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's memory; that of bf16 as int16, since NumPy has no bf16."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _llvm_unary(result: Any, argument: Any, generate: Callable[[Any, Any], Any]) -> Any:
    """A scalar function that is one LLVM instruction, so that loops over it are vectorised."""

    @intrinsic
    def function(typing_context, value):
        return result(argument), lambda context, builder, signature, arguments: generate(
            builder, arguments[0]
        )

    return function


_bits = _llvm_unary(types.int32, types.float32, lambda b, x: b.bitcast(x, ir.IntType(32)))
_from_bits = _llvm_unary(types.float32, types.int32, lambda b, x: b.bitcast(x, ir.FloatType()))
_round = _llvm_unary(
    types.float32,
    types.float32,
    lambda b, x: b.call(b.module.declare_intrinsic("llvm.nearbyint", (x.type,)), [x]),
)

_F = np.float32
_LOG2_E = _F(1.4426950408889634)
# ln 2 in two parts; the product of the first with a small integer is exact.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_SMALLEST_EXPONENT = _F(-87.0)
# By least squares on Chebyshev nodes: (e^r - 1) / r by r for |r| <= ln(2) / 2, to 6e-9, and
# 2·artanh(s) / s by s² for s <= 1/3, to 8e-9.
_EXP = tuple(
    _F(c)
    for c in (1.00000001, 0.500000005, 0.166665052, 0.0416663527, 0.00836915816, 0.00139411214)
)
_ARTANH = tuple(_F(c) for c in (2.00000001, 0.666663159, 0.400248537, 0.279614188, 0.281746573))


@njit(inline="always")
def _exp_of_negative(x):
    """exp(x) for x <= 0, within 2 units in the last place; 0 below -87."""
    clipped = max(x, _SMALLEST_EXPONENT)
    n = _round(clipped * _LOG2_E)
    r = clipped - n * _LN2_HIGH - n * _LN2_LOW
    c0, c1, c2, c3, c4, c5 = _EXP
    p = (((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + c0) * r + _F(1)
    scaled = _from_bits(_bits(p) + (np.int32(n) << np.int32(23)))
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
    return _from_bits(np.int32(value) << np.int32(16))


@njit(inline="always")
def _store_bf16(value):
    """Rounded to the nearest bf16, ties to even."""
    bits = _bits(value)
    return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> 16)


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


def _compile(formula: type[Formula], gamma: float, is_bf16: bool) -> Callable[..., float]:
    function = _FOCAL_OF_GAMMA.get(gamma, _focal) if formula is Focal else _focal_star
    return _compile_function(function, is_bf16)


@functools.cache
def _compile_function(formula: Any, is_bf16: bool) -> Callable[..., float]:
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
