"""The dense losses on CUDA: each logit is read once and each gradient written once.

One launch computes all levels; their logits stay where they are. The logits of an image, R anchors
of a level times K classes, are one row-major sequence. Each program computes a block of it, in
groups of V elements, where V divides K: the elements of a group share an anchor, which is found
once for all of them. Each program stores a partial sum, and torch.sum adds them in the same order
every time: no atomics. Nothing waits for the device and no launch depends on the data: a CUDA graph
can capture it all.

With triton.autotune, the block size, and so the sum's last digits, would change from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# (what Triton compiles has Triton's types)
import math
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import Formula, Levels

# Elements of a program: 16 of each of its 128 threads.
_BLOCK = 2048
# Few programs, because usually they have nothing to do.
_SCALE_BLOCK = 8192
# fp16 gradients are kept times 2^12 until backward: those of easy negatives would round to zero
# before a loss scaler multiplies them. The steepest slope is below 2: weights up to 8 have room.
_FP16_SCALE = 2.0**12


def loss_and_gradients(
    logits: Levels, labels: Levels, needs_grad: bool, formula: Formula, weights: Tensor
) -> tuple[Tensor, Levels]:
    """See :mod:`focal_retina.losses.ops`; the gradients of fp16 are times ``_FP16_SCALE``."""
    name, gamma, beta = formula
    num_images, _, num_classes = logits[0].shape
    num_programs = sum(-(-x.shape[1] * num_classes // _BLOCK) for x in logits)  # rounded up
    sums = weights.new_empty(num_images, num_programs)
    gradients = [torch.empty_like(x) for x in logits] if needs_grad else []
    if sums.numel() > 0:
        with torch.cuda.device_of(logits[0]):
            _loss_kernel[num_programs, num_images](
                tuple(logits),
                tuple(gradients),
                torch.cat(labels, dim=1),
                sums,
                weights,
                _unspecialized(x.shape[1] for x in logits),
                sum(x.shape[1] for x in logits),
                num_classes=num_classes,
                formula=_FORMULAS[name],
                gamma=gamma,
                beta=beta,
                scale=_FP16_SCALE if logits[0].dtype == torch.float16 else 1.0,
                per_class=weights.shape[1] > 1,
                group=math.gcd(num_classes, 16),
                block=_BLOCK,
            )
    return sums.sum(), gradients


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """See :mod:`focal_retina.losses.ops`; the factor stays on the device."""
    num_programs = sum(-(-x.numel() // _SCALE_BLOCK) for x in gradients)
    if num_programs == 0:
        return
    if gradients[0].dtype == torch.float16:
        factor = factor / _FP16_SCALE
    with torch.cuda.device_of(factor):
        sizes = _unspecialized(x.numel() for x in gradients)
        _scale_kernel[num_programs,](tuple(gradients), factor, sizes, block=_SCALE_BLOCK)


def _unspecialized(numbers: Iterable[int]) -> tuple[int, ...]:
    """Numbers times 4, plus 2. Triton compiles anew for 1 and for multiples of 16, and in a tuple
    it can't be told not to: levels of images of any size would mean many kernels."""
    return tuple(4 * number + 2 for number in numbers)


@triton.jit
def _select(entries, index):
    """``entries[index]`` of a tuple, where the index is known on the device alone."""
    entry = entries[0]
    for i in tl.static_range(1, len(entries)):
        entry = tl.where(index == i, entries[i], entry)
    return entry


@triton.jit
def _find_level(numbers, factor: tl.constexpr, block: tl.constexpr):
    """The level that this program computes: its index, its number of elements / ``factor``, and of
    the levels before it the sum of these numbers, and the programs. ``numbers``: see
    :func:`_unspecialized`; a program computes ``block`` elements."""
    level, before, programs_before = 0, tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    numbers_end, programs_end = before, programs_before
    for i in tl.static_range(len(numbers)):
        is_reached = tl.program_id(0) >= programs_end
        level = tl.where(is_reached, i, level)
        before = tl.where(is_reached, numbers_end, before)
        programs_before = tl.where(is_reached, programs_end, programs_before)
        number = numbers[i].to(tl.int64) // 4
        numbers_end += number
        programs_end += tl.cdiv(number * factor, block)
    return level, _select(numbers, level).to(tl.int64) // 4, before, programs_before


# log(1 + e) / e by e, for 0 <= e <= 1, to 8e-8, by least squares on Chebyshev nodes.
# fmt: off
_LOG1P = tl.constexpr((
    0.99999994, -0.499994934, 0.333190948, -0.248429701, 0.191059574, -0.136631399, 0.0782247037,
    -0.0295044724, 0.00523250317,
))
# fmt: on


@triton.jit
def _sigmoid_and_softplus(z):
    """σ(z), σ(-z), softplus(z) and softplus(-z), each to the last digits wherever z is."""
    e = tl.exp(-tl.abs(z))
    larger = 1 / (1 + e)
    smaller = e * larger
    polynomial = e * _LOG1P[8] + _LOG1P[7]
    for i in tl.static_range(6, -1, -1):
        polynomial = polynomial * e + _LOG1P[i]
    log1p = e * polynomial
    p = tl.where(z >= 0, larger, smaller)
    q = tl.where(z >= 0, smaller, larger)
    return p, q, tl.maximum(z, 0) + log1p, tl.maximum(-z, 0) + log1p


# A loss and its slope, as numba_cpu.py derives them.
@triton.jit
def _focal(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, q, softplus, softplus_of_minus = _sigmoid_and_softplus(z)
    modulation = p * p if gamma == 2 else tl.exp(-gamma * softplus_of_minus)
    return modulation * softplus, modulation * (p + gamma * softplus * q)


@triton.jit
def _focal_star(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, _, softplus, _ = _sigmoid_and_softplus(gamma * z - beta)
    return softplus / gamma, p


_FORMULAS = {"focal": _focal, "focal_star": _focal_star}


@triton.jit(do_not_specialize=["labels_stride"])
def _loss_kernel(
    logits,  # tuple over levels of (N, R_l, K)
    gradients,  # of the same; or an empty tuple
    labels,  # int64 (N, R) of all levels
    sums,  # (N, programs of an image)
    weights,  # (2, K), or (2, 1)
    nums_anchors,  # of each level, see _unspecialized
    labels_stride,
    num_classes: tl.constexpr,
    formula: tl.constexpr,
    gamma: tl.constexpr,
    beta: tl.constexpr,
    scale: tl.constexpr,
    per_class: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
):
    level, num_anchors, anchors_before, programs_before = _find_level(
        nums_anchors, num_classes, block
    )
    image = tl.program_id(1).to(tl.int64)
    size = num_anchors * num_classes
    start = (tl.program_id(0) - programs_before) * block

    # 64-bit division once a program, for the start of its block; 32-bit for the groups.
    first = tl.arange(0, block // group) * group
    is_inside = first < tl.minimum(size - start, block).to(tl.int32)
    element = (start % num_classes).to(tl.int32) + first
    anchor = start // num_classes + element // num_classes
    label_at = image * labels_stride + anchors_before + anchor
    label = tl.load(labels + label_at, mask=is_inside, other=-1)
    first_class = element % num_classes
    own_class = (label - first_class).to(tl.int32)
    is_counted = (label >= 0)[:, None]

    at = (image * size + start + first)[:, None] + tl.arange(0, group)
    mask = tl.broadcast_to(is_inside[:, None], at.shape)
    x = tl.load(_select(logits, level) + at, mask=mask, other=0).to(tl.float32)
    # Selected, not multiplied by 0: an ignored logit may be infinite.
    x = tl.where(is_counted, x, 0)
    is_own_class = own_class[:, None] == tl.arange(0, group)
    class_at = first_class[:, None] + tl.arange(0, group) if per_class else 0
    positive_weight = tl.load(weights + class_at)
    negative_weight = tl.load(weights + (num_classes if per_class else 1) + class_at)
    weight = tl.where(is_own_class, positive_weight, tl.where(is_counted, negative_weight, 0))
    loss, slope = formula(tl.where(is_own_class, -x, x), gamma, beta)

    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program, tl.sum(weight * loss))
    if len(gradients) > 0:
        gradient = _select(gradients, level) + at
        slope = scale * weight * tl.where(is_own_class, -slope, slope)
        tl.store(gradient, slope.to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def _scale_kernel(gradients, factor, sizes, block: tl.constexpr):
    number = tl.load(factor)
    # Where the factor is already in the weights, nothing is read or written.
    if number != 1:
        level, size, _, programs_before = _find_level(sizes, 1, block)
        start = (tl.program_id(0) - programs_before) * block
        lane = tl.arange(0, block)
        gradient = _select(gradients, level) + start + lane
        x = tl.load(gradient, mask=start + lane < size)
        x = (x.to(tl.float32) * number).to(gradient.dtype.element_ty)
        tl.store(gradient, x, mask=start + lane < size)
