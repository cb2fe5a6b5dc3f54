"""The sum of a dense loss as one differentiable operator, near the speed of a copy.

Forward computes loss and gradient together and keeps only the gradient. Backward multiplies it, in
place, by the gradient of the sum. ``torch.compile`` sees one opaque node, and compiles the model
around it.

A kernel is a module with two functions:

* ``loss_and_gradients(logits, labels, needs_grad, formula, weights)`` returns the sum, and the
  gradient of each level if ``needs_grad``. The arguments are those of :func:`dense_loss_sum`, but
  the logits are row-major in memory, and ``weights`` is fp32 (2, K), or (2, 1) for all classes.
* ``scale_(gradients, factor)`` multiplies such gradients in place by a 0-dim tensor.
"""

import functools
import importlib
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Levels = list[Tensor]  # a tensor a level
Formula = tuple[str, float, float]  # of the loss of one logit: "focal" or "focal_star", γ, β
Weights = tuple[float, float] | tuple[Tensor, Tensor]  # of an own class and of others; each (K,)
KERNELS = ("auto", "plain", "numba", "triton")

# Imported when first used: Triton is not installed everywhere, and Numba takes a while.
_MODULES = {"numba": ".numba_cpu", "triton": ".triton_cuda"}
_HAS_NUMBA = find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


def choose_kernel(kernel: str, device: str, dtype: torch.dtype) -> str:
    """What ``"auto"`` stands for, from the logits' type of device and dtype; another ``kernel``
    itself."""
    can_compute = {
        "numba": device == "cpu" and dtype in (torch.float32, torch.bfloat16) and _HAS_NUMBA,
        "triton": device == "cuda" and dtype != torch.float64 and _has_triton(),
        "plain": True,
    }
    if kernel == "auto":
        return next(name for name, can in can_compute.items() if can)
    if not can_compute.get(kernel):
        raise ValueError(
            f"CLS_LOSS.KERNEL {kernel!r} cannot compute {dtype} logits on {device} here: "
            'choose "auto" or "plain"'
        )
    return kernel


@torch.compiler.assume_constant_result
@functools.cache
def _has_triton() -> bool:
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return find_spec("triton") is not None and all(x >= (7, 0) for x in capabilities)


def dense_loss_sum(
    logits: Levels,
    labels: Levels,
    formula: Formula,
    weights: Weights,
    kernel: str,
    normalizer: Tensor | None = None,
) -> Tensor:
    """Σ weight·loss over all anchors and classes; differentiable once, by the logits.

    Args:
        logits: list over levels of (N, R_l, K), all of one dtype that the kernel computes, of any
            strides. fp16 and bf16 are computed in fp32; their gradient is kept in their dtype.
        labels: list over levels of int64 (N, R_l). The caller has checked both.
        kernel: "numba" or "triton".
        normalizer: 0-dim; the sum is divided by it. To divide the sum afterwards means another pass
            over the gradients.
    """
    tensors = [x for x in [*logits, *weights] if isinstance(x, Tensor)]
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None for x in tensors
    ):
        raise RuntimeError(
            "the loss kernels have no forward-mode derivative (torch.func.jvp): choose the kernel "
            '"plain", whose loss has derivatives of any order'
        )
    if isinstance(weights[0], Tensor):
        factors = torch.stack(weights).float()
        if factors.requires_grad:
            raise ValueError("the loss weights require a gradient, which the kernels don't compute")
    else:
        factors = _numbers_on(logits[0].device, *weights)
    divisor = None
    if normalizer is not None and logits[0].dtype == torch.float16:
        divisor = normalizer  # divided early, gradients would round to zero
    elif normalizer is not None:
        factors = factors / normalizer
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in logits)
    arguments = labels, factors, needs_grad, *formula, kernel
    if _is_traced(logits):
        total, _ = torch.ops.focal_retina.dense_loss(logits, *arguments)
    else:
        total = _EagerLoss.apply(arguments, *logits)
    return total if divisor is None else total / divisor


@functools.lru_cache(maxsize=16)
def _numbers_on(device: torch.device, *numbers: float) -> Tensor:
    """fp32 (n, 1). Copied once: a new copy would wait for a GPU."""
    return torch.tensor(numbers, device=device)[:, None]


def _is_traced(tensors: Iterable[Tensor]) -> bool:
    """Whether values are not all there is: compilers and torch.func look into the operator."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or any(type(x) is not Tensor for x in tensors)
    )


def _module(kernel: str) -> ModuleType:
    return importlib.import_module(_MODULES[kernel], __package__)


def _loss_and_gradients(
    logits: list[Tensor],
    labels: list[Tensor],
    weights: Tensor,
    needs_grad: bool,
    formula: str,
    gamma: float,
    beta: float,
    kernel: str,
) -> tuple[Tensor, list[Tensor]]:
    total, gradients = _module(kernel).loss_and_gradients(
        [x.contiguous() for x in logits], labels, needs_grad, (formula, gamma, beta), weights
    )
    for i, gradient in enumerate(gradients):
        if not logits[i].is_contiguous():
            gradients[i] = torch.empty_like(logits[i]).copy_(gradient)
    return total, gradients


_dense_loss = torch.library.custom_op(
    "focal_retina::dense_loss", _loss_and_gradients, mutates_args=()
)


@_dense_loss.register_fake
def _dense_loss_fake(
    logits: list[Tensor], labels: list[Tensor], weights: Tensor, needs_grad: bool, *_: Any
) -> tuple[Tensor, list[Tensor]]:
    total = logits[0].new_empty((), dtype=torch.float32)
    return total, [torch.empty_like(x) for x in logits if needs_grad]


@torch.library.custom_op("focal_retina::scale_gradients_", mutates_args=("gradients",))
def _scale_gradients_(gradients: list[Tensor], factor: Tensor, kernel: str) -> None:
    _module(kernel).scale_(gradients, factor)


def _save(ctx: Any, kernel: str, gradients: Sequence[Tensor]) -> None:
    ctx.kernel = kernel
    ctx.save_for_backward(*gradients)
    # The saved gradients are outputs that nobody differentiates: no zeros in their place.
    ctx.set_materialize_grads(False)


def _scaled(ctx: Any, factor: Tensor) -> list[Tensor]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the loss kernels have no second derivative: call backward without create_graph, or "
            'choose the kernel "plain", whose loss has derivatives of any order'
        )
    gradients = [gradient.detach() for gradient in ctx.saved_tensors]
    # The saved gradient becomes the result, unless another backward may come for it, or this one is
    # being traced: a compiled graph plans its own memory.
    is_traced = _is_traced(gradients)
    if is_traced or torch._C._autograd._get_current_graph_task_keep_graph():
        gradients = [gradient.clone() for gradient in gradients]
    if is_traced:
        torch.ops.focal_retina.scale_gradients_(gradients, factor, ctx.kernel)
    else:
        _module(ctx.kernel).scale_(gradients, factor)
    return gradients


_dense_loss.register_autograd(
    lambda ctx, factor, _: (_scaled(ctx, factor), [None] * len(ctx.saved_tensors), *[None] * 6),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs[-1], output[1]),
)


class _EagerLoss(torch.autograd.Function):
    """The operator without torch.library's dispatch, which takes a millisecond: ten times as long
    as the kernel on a GPU."""

    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *logits: Tensor) -> Tensor:
        total, gradients = _loss_and_gradients(list(logits), *arguments)
        _save(ctx, arguments[-1], gradients)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Any, ...]:
        return None, *_scaled(ctx, grad_total)
