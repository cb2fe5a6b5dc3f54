"""The loss kernel for CUDA: each logit is read once and each gradient written once.

N images, R anchors of a level, K classes. The (R, K) logits of an image are taken as one row-major
sequence, which programs divide among themselves in blocks; an element finds its anchor and its
class by division, so that no lane idles, whatever K is. There is one launch a level, which reads
that level's own memory: nothing is concatenated. Each program leaves a partial sum, and torch.sum
adds those up in the same order every time: no atomics. Nothing waits for the device and no launch
depends on the data, so that a CUDA graph can capture it all.

The block size depends on the dtype alone. To measure candidates at run time (triton.autotune) would
let the order of the sum, and so its last digits, change from run to run, and can't be captured.
"""

# mypy: disable-error-code="no-untyped-def"
# (what Triton compiles has Triton's types)
import torch
import triton
import triton.language as tl
from torch import Tensor

from .formulas import Focal, FocalStar, Formula
from .memory import GRADIENT_SCALE, empty_gradient

# Elements of a program of 128 threads: four loads of 16 bytes each.
_BLOCK_BYTES = 128 * 4 * 16


def loss_and_gradients(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: list[bool],
    formula: Formula,
    positive_weight: float | Tensor,
    negative_weight: float | Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """As :func:`.blocked.loss_and_gradients`."""
    block = _BLOCK_BYTES // logits[0].element_size()
    scale = GRADIENT_SCALE.get(logits[0].dtype, 1.0)
    num_programs = [len(x) * triton.cdiv(x[0].numel(), block) if len(x) else 0 for x in logits]
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    sums = logits[0].new_empty(sum(num_programs), dtype=dtype)
    gradients = [empty_gradient(x) if n else None for x, n in zip(logits, needs_grad, strict=True)]
    with torch.cuda.device_of(logits[0]):
        for x, y, gradient, level_sums in zip(
            logits, labels, gradients, sums.split(num_programs), strict=True
        ):
            if x.numel() == 0:
                continue
            num_images, num_anchors, num_classes = x.shape
            strides = x.stride(), (x if gradient is None else gradient).stride()
            _loss_kernel[len(level_sums) // num_images, num_images](
                x,
                y,
                gradient,
                level_sums,
                positive_weight * scale,
                negative_weight * scale,
                num_anchors * num_classes,
                *strides[0],
                *y.stride(),
                *strides[1],
                num_classes=num_classes,
                formula=_FORMULAS[type(formula)],
                gamma=formula.gamma,
                beta=getattr(formula, "beta", 0.0),
                row_major=all(stride[1:] == (num_classes, 1) for stride in strides),
                class_weights=isinstance(positive_weight, Tensor),
                block=block,
            )
    return sums.sum() / scale, [gradient for gradient in gradients if gradient is not None]


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply ``gradient``, dense memory, in place by a 0-dim tensor that stays on the device."""
    if gradient.numel() == 0:
        return
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


@triton.jit
def _focal(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, q, softplus, softplus_of_minus = _sigmoid_and_softplus(z)
    modulation = tl.exp(-gamma * softplus_of_minus)
    return modulation * softplus, modulation * (p + gamma * softplus * q)


@triton.jit
def _focal_star(z, gamma: tl.constexpr, beta: tl.constexpr):
    p, _, softplus, _ = _sigmoid_and_softplus(gamma * z - beta)
    return softplus / gamma, p


_FORMULAS = {Focal: _focal, FocalStar: _focal_star}


# Triton compiles anew for what it sees in the arguments. That an image's logits begin at a multiple
# of 16 elements lets it load them 16 bytes at a time; the labels' stride, which changes with the
# image size, gains it nothing.
@triton.jit(do_not_specialize=["labels_stride_n"])
def _loss_kernel(
    logits,
    labels,
    gradient,
    sums,
    positive_weight,
    negative_weight,
    size,
    logits_stride_n,
    logits_stride_r,
    logits_stride_k,
    labels_stride_n,
    labels_stride_r,
    gradient_stride_n,
    gradient_stride_r,
    gradient_stride_k,
    num_classes: tl.constexpr,
    formula: tl.constexpr,
    gamma: tl.constexpr,
    beta: tl.constexpr,
    row_major: tl.constexpr,
    class_weights: tl.constexpr,
    block: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    logits += image * logits_stride_n
    labels += image * labels_stride_n

    # 64-bit division once a program, for where its block begins; 32-bit for the elements.
    start = tl.program_id(0).to(tl.int64) * block
    lane = tl.arange(0, block)
    is_inside = start + lane < size
    element = (start % num_classes).to(tl.int32) + lane
    k = element % num_classes
    anchor = start // num_classes + element // num_classes
    at = start + lane if row_major else anchor * logits_stride_r + k * logits_stride_k

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
        if not row_major:
            at = anchor * gradient_stride_r + k * gradient_stride_k
        tl.store(gradient + image * gradient_stride_n + at, slope, mask=is_inside)


@triton.jit
def _scale_kernel(gradient, factor, size, block: tl.constexpr):
    number = tl.load(factor)
    # Where the factor is already in the weights, nothing is read or written.
    if number != 1:
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        x = tl.load(gradient + at, mask=at < size).to(number.dtype)
        tl.store(gradient + at, (x * number).to(gradient.dtype.element_ty), mask=at < size)
