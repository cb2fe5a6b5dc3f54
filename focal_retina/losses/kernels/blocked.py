"""The loss kernel for any device: whole-tensor operations on blocks that stay in the cache.

N images, R anchors of a level, K classes. A block's logits are read from memory once, taken through
the formula as if all its anchors were background, and its gradient is written once. The few entries
where that is wrong, those of ignored anchors and of anchors' own classes, are left out of the
block's sum (taking them off afterwards would cancel digits) and are then set right.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .formulas import Formula
from .memory import GRADIENT_SCALE, empty_gradient
from .threads import on_each_thread

# Five blocks of fp32 fit into a core's second-level cache.
_BLOCK = 1 << 16
# What a thread takes at a time; its special anchors are looked up together.
_CHUNK = 16 * _BLOCK


def loss_and_gradients(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: list[bool],
    formula: Formula,
    positive_weight: float | Tensor,
    negative_weight: float | Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """The loss summed over everything, and its gradient by the levels that need one.

    Args:
        logits: list over levels of (N, R_l, K), all of one floating dtype, of any strides.
        labels: list over levels of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background.
        needs_grad: of each level, whether to compute its gradient.
        formula: the loss of one logit.
        positive_weight, negative_weight: its factor at an anchor's own class and elsewhere, one
            number or (K,).

    Returns:
        The sum, 0-dim, fp32 or wider; and, of the levels that need it, the gradient in the logits'
        dtype, times GRADIENT_SCALE where that has an entry for the dtype.
    """
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    scale = GRADIENT_SCALE.get(logits[0].dtype, 1.0)
    loss = _Loss(formula, positive_weight * scale, negative_weight * scale)
    gradients = [empty_gradient(x) if n else None for x, n in zip(logits, needs_grad, strict=True)]
    levels = zip(logits, labels, gradients, strict=True)
    chunks = iter([chunk for level in levels for chunk in _chunks(*level)])

    def take_chunks() -> list[float]:
        scratch = _Scratch(logits[0].new_empty((5, max(_BLOCK, logits[0].shape[2])), dtype=dtype))
        return [total for chunk in chunks for total in _chunk_sums(chunk, loss, scratch)]

    on_cpu = logits[0].device.type == "cpu"
    sums = on_each_thread(take_chunks) if on_cpu else [take_chunks()]
    # Exact until it is rounded, once: which thread took what makes no difference.
    total = math.fsum(itertools.chain(*sums)) / (scale * formula.loss_scale)
    return logits[0].new_tensor(total, dtype=dtype), [g for g in gradients if g is not None]


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply ``gradient``, dense memory, in place by a 0-dim tensor."""
    number = factor.item()
    if number == 1:
        return
    if gradient.device.type != "cpu" or gradient.itemsize >= 4:
        gradient.mul_(number)
        return
    # ATen's multiplication of narrow dtypes takes twice as long as this.
    blocks = iter(gradient.as_strided((gradient.numel(),), (1,)).split(_BLOCK))

    def scale_blocks() -> None:
        scratch = gradient.new_empty(_BLOCK, dtype=torch.float32)
        for block in blocks:
            block.copy_(scratch[: len(block)].copy_(block).mul_(number))

    on_each_thread(scale_blocks)


class _Loss(NamedTuple):
    formula: Formula
    positive_weight: float | Tensor
    negative_weight: float | Tensor


class _Chunk(NamedTuple):
    """Some anchors of one level of one image."""

    logits: Tensor  # (anchors, K)
    labels: Tensor  # (anchors,)
    gradient: Tensor | None  # (anchors, K), to be written


def _chunks(logits: Tensor, labels: Tensor, gradient: Tensor | None) -> Iterator[_Chunk]:
    num_anchors = max(_CHUNK // logits.shape[2], 1)
    for image in range(len(logits)):
        x = logits[image].split(num_anchors)
        y = labels[image].split(num_anchors)
        g = [None] * len(x) if gradient is None else gradient[image].split(num_anchors)
        yield from map(_Chunk, x, y, g)


class _Scratch:
    """The first elements of each row of ``memory``, as tensors of the shape that is asked for."""

    def __init__(self, memory: Tensor):
        self._memory = memory
        self._shape: torch.Size | None = None
        self._tensors: list[Tensor] = []

    def of_shape(self, shape: torch.Size) -> list[Tensor]:
        if shape != self._shape:
            self._shape = shape
            self._tensors = [row[: shape.numel()].view(shape) for row in self._memory]
        return self._tensors


def _chunk_sums(chunk: _Chunk, loss: _Loss, scratch: _Scratch) -> Iterator[float]:
    special = torch.nonzero(chunk.labels != chunk.logits.shape[1]).squeeze(1)
    label = chunk.labels[special]
    ignored, positive, own_class = special[label < 0], special[label >= 0], label[label >= 0]
    yield from _negative_sums(chunk, loss, scratch, ignored, positive, own_class)
    if chunk.gradient is not None:
        chunk.gradient.index_fill_(0, ignored, 0)
    for first in range(0, len(positive), _BLOCK):
        part = slice(first, first + _BLOCK)
        yield _positive_sum(chunk, loss, scratch, positive[part], own_class[part])


def _negative_sums(
    chunk: _Chunk,
    loss: _Loss,
    scratch: _Scratch,
    ignored: Tensor,
    positive: Tensor,
    own_class: Tensor,
) -> Iterator[float]:
    """Block by block; writes the gradient as if there were only negatives."""
    num_anchors, num_classes = chunk.logits.shape
    step = max(_BLOCK // num_classes, 1)
    own = positive * num_classes + own_class
    blocks = chunk.logits.split(step)
    slopes = [None] * len(blocks) if chunk.gradient is None else chunk.gradient.split(step)
    ignored_by_block = _by_block(ignored, step, num_anchors)
    own_by_block = _by_block(own, step * num_classes, num_anchors * num_classes)
    for block in zip(blocks, slopes, ignored_by_block, own_by_block, strict=True):
        yield _sum(loss.formula, loss.negative_weight, scratch, *block)


def _positive_sum(
    chunk: _Chunk, loss: _Loss, scratch: _Scratch, positive: Tensor, own_class: Tensor
) -> float:
    """Over some positives at their own classes; puts their gradient in its place."""
    weight = loss.positive_weight
    weight = weight[own_class] if isinstance(weight, Tensor) else weight
    z = -chunk.logits[positive, own_class]
    if chunk.gradient is None:
        return _sum(loss.formula, weight, scratch, z, None)
    slope = torch.empty_like(z)
    total = _sum(loss.formula, weight, scratch, z, slope)
    chunk.gradient[positive, own_class] = -slope
    return total


def _by_block(indices: Tensor, block: int, total: int) -> tuple[Tensor, ...]:
    """Ascending indices below ``total``, for each block those in it, counted from its start."""
    borders = torch.tensor(range(block, total, block), dtype=torch.int64, device=indices.device)
    return (indices % block).tensor_split(torch.searchsorted(indices, borders).tolist())


def _sum(
    formula: Formula,
    weight: float | Tensor,
    scratch: _Scratch,
    z: Tensor,
    slope: Tensor | None,
    *left_out: Tensor,
) -> float:
    """The formula summed over z.

    Args:
        z: of any dtype and strides.
        slope: like z; takes the slopes, where wanted.
        left_out: rows of z, and elements of z, that don't count.
    """
    z_copy, *buffers, slope_copy = scratch.of_shape(z.shape)
    if z.dtype != z_copy.dtype or not z.is_contiguous():
        z = z_copy.copy_(z)
    out = slope_copy if slope is not None and slope.dtype != z.dtype else slope
    # An overflow, which is rare, shows in the sum: cheaper than to look at all z before.
    for large in (False, True):
        losses = formula.evaluate(z, weight, buffers, out, large=large)
        for indices, view in zip(left_out, (losses, losses.view(-1)), strict=False):
            if len(indices):
                view.index_fill_(0, indices, 0)
        total = losses.sum().item()
        if math.isfinite(total):
            break
    if slope is not None and out is slope_copy:
        slope.copy_(slope_copy)
    return total
