"""The dense losses on CUDA: each logit is read once and each gradient written once.

The logits of an image, R anchors of a level times K classes, are one row-major sequence. Each
program computes a block of it. An element finds its anchor and its class by division, so that no
lane idles, whatever K is. Each level is one launch: nothing is concatenated. Each program stores a
partial sum, and torch.sum adds them in the same order every time: no atomics. Nothing waits for the
device and no launch depends on the data: a CUDA graph can capture it all.

With triton.autotune, the block size, and so the sum's last digits, would change from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# (what Triton compiles has Triton's types)
from collections.abc import Sequence
from itertools import zip_longest

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a program of 128 threads: four loads of 16 bytes each.
_BLOCK_BYTES = 128 * 4 * 16
# fp16 gradients are kept times 2^12 until backward: those of easy negatives would round to zero
# before a loss scaler multiplies them. The steepest slope is below 2: weights up to 8 have room.
_FP16_SCALE = 2.0**12


def loss_and_gradients(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: bool,
    formula: tuple[str, float, float],
    weights: Sequence[float] | Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """See :mod:`focal_retina.losses.ops`; the gradients of fp16 are times ``_FP16_SCALE``."""
    name, gamma, beta = formula
    scale = _FP16_SCALE if logits[0].dtype == torch.float16 else 1.0
    positive_weight, negative_weight = (weight * scale for weight in weights)
    block = _BLOCK_BYTES // logits[0].element_size()
    num_programs = [len(x) * triton.cdiv(x[0].numel(), block) if len(x) else 0 for x in logits]
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    sums = logits[0].new_empty(sum(num_programs), dtype=dtype)
    gradients = [torch.empty_like(x) for x in logits] if needs_grad else []
    levels = zip_longest(logits, labels, sums.split(num_programs), gradients)
    with torch.cuda.device_of(logits[0]):
        for x, y, level_sums, gradient in levels:
            if x.numel() == 0:
                continue
            _loss_kernel[len(level_sums) // len(x), len(x)](
                x,
                y,
                gradient,
                level_sums,
                positive_weight,
                negative_weight,
                x[0].numel(),
                *y.stride(),
                num_classes=x.shape[2],
                formula=_FORMULAS[name],
                gamma=gamma,
                beta=beta,
                class_weights=isinstance(weights, Tensor),
                block=block,
            )
    return sums.sum() / scale, gradients


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """See :mod:`focal_retina.losses.ops`; the factor stays on the device."""
    if gradient.numel() == 0:
        return
    if gradient.dtype == torch.float16:
        factor = factor / _FP16_SCALE
    block = _BLOCK_BYTES // gradient.element_size()
    with torch.cuda.device_of(gradient):
        _scale_kernel[triton.cdiv(gradient.numel(), block),](
            gradient, factor, gradient.numel(), block=block
        )


@triton.jit
def _sigmoid_and_softplus(z):
    """σ(z), σ(-z), softplus(z) and softplus(-z), each to the last digits wherever z is."""
    e = tl.exp(-tl.abs(z))
    u = 1 + e
    larger = 1 / u
    # log(1 + e), with what u lost of e by rounding.
    log1p = tl.log(u) + (e - (u - 1)) * larger
    smaller = e * larger
    p = tl.where(z >= 0, larger, smaller)
    q = tl.where(z >= 0, smaller, larger)
    return p, q, tl.maximum(z, 0) + log1p, tl.maximum(-z, 0) + log1p


# A loss and its slope, the derivative by z = -x_t (paper section 3 and appendix A):
#   FL:  σ(z)^γ·softplus(z),     σ(z)^γ·(σ(z) + γ·softplus(z)·σ(-z)),  where σ(z) = e^-softplus(-z)
#   FL*: softplus(γ·z - β) / γ,  σ(γ·z - β)
# The derivative by x is the slope for a negative and minus the slope for a positive.
@triton.jit
def _focal(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, q, softplus, softplus_of_minus = _sigmoid_and_softplus(z)
    modulation = tl.exp(-gamma * softplus_of_minus)
    return modulation * softplus, modulation * (p + gamma * softplus * q)


@triton.jit
def _focal_star(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, _, softplus, _ = _sigmoid_and_softplus(gamma * z - beta)
    return softplus / gamma, p


_FORMULAS = {"focal": _focal, "focal_star": _focal_star}


# Triton compiles anew for certain values of arguments. A size that is a multiple of 16 lets it load
# 16 bytes at a time; the labels' stride changes with the image size, and gains nothing.
@triton.jit(do_not_specialize=["labels_stride_n"])
def _loss_kernel(
    logits,
    labels,
    gradient,
    sums,
    positive_weight,
    negative_weight,
    size,
    labels_stride_n,
    labels_stride_r,
    num_classes: tl.constexpr,
    formula: tl.constexpr,
    gamma: tl.constexpr,
    beta: tl.constexpr,
    class_weights: tl.constexpr,
    block: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    labels += image * labels_stride_n

    # 64-bit division once a program, for the start of its block; 32-bit for the elements.
    start = tl.program_id(0).to(tl.int64) * block
    lane = tl.arange(0, block)
    is_inside = start + lane < size
    element = (start % num_classes).to(tl.int32) + lane
    k = element % num_classes
    anchor = start // num_classes + element // num_classes
    at = image * size + start + lane

    accumulator: tl.constexpr = sums.dtype.element_ty
    x = tl.load(logits + at, mask=is_inside, other=0).to(accumulator)
    label = tl.load(labels + anchor * labels_stride_r, mask=is_inside, other=-1)
    is_own_class = k == label
    if class_weights:
        positive_weight = tl.load(positive_weight + k)
        negative_weight = tl.load(negative_weight + k)
    weight = tl.where(is_own_class, positive_weight, negative_weight).to(accumulator)
    loss, slope = formula(tl.where(is_own_class, -x, x), gamma, beta)

    # Selected, not multiplied by 0: an ignored logit may be infinite.
    loss = tl.where(label >= 0, weight * loss, 0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program, tl.sum(loss))
    if gradient is not None:
        slope = weight * tl.where(is_own_class, -slope, slope)
        slope = tl.where(label >= 0, slope, 0).to(gradient.dtype.element_ty)
        tl.store(gradient + at, slope, mask=is_inside)


@triton.jit
def _scale_kernel(gradient, factor, size, block: tl.constexpr):
    number = tl.load(factor)
    # Where the factor is already in the weights, nothing is read or written.
    if number != 1:
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        x = tl.load(gradient + at, mask=at < size).to(number.dtype)
        tl.store(gradient + at, (x * number).to(gradient.dtype.element_ty), mask=at < size)
