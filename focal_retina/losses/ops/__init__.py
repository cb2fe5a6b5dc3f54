"""The sum of a dense loss as one differentiable operator, near the speed of a copy.

Forward computes loss and gradient together and keeps only the gradient. Backward multiplies it, in
place, by the gradient of the sum. ``torch.compile`` sees one opaque node, and compiles the model
around it.

A kernel is a module with two functions:

* ``loss_and_gradients(logits, labels, needs_grad, formula, weights)`` returns the sum, and the
  gradient of each level if ``needs_grad``. The arguments are those of :func:`dense_loss_sum`, but
  the logits are row-major in memory, and ``weights`` is two numbers or a (2, K) tensor.
* ``scale_(gradient, factor)`` multiplies such a gradient in place by a 0-dim tensor.
"""

import importlib
import os
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

KERNELS = ("auto", "plain", "numba", "triton")

# Imported when first used: Triton is not installed everywhere, and Numba takes a while.
_MODULES = {"numba": ".numba_cpu", "triton": ".triton_cuda"}
_HAS_NUMBA = find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


def choose_kernel(kernel: str, logits: Tensor) -> str:
    """What ``"auto"`` stands for, from the logits' device and dtype; another ``kernel`` itself."""
    device, dtype = logits.device.type, logits.dtype
    can_compute = {
        "numba": device == "cpu" and dtype in (torch.float32, torch.bfloat16) and _HAS_NUMBA,
        "triton": device == "cuda" and _has_triton(),
        "plain": True,
    }
    if kernel == "auto":
        return next(name for name, can in can_compute.items() if can)
    if not can_compute[kernel]:
        raise ValueError(
            f"the loss kernel {kernel!r} cannot compute {dtype} logits on {device} here: "
            'choose "auto" or "plain"'
        )
    return kernel


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return find_spec("triton") is not None and all(x >= (7, 0) for x in capabilities)


def check_levels(logits: list[Tensor], labels: list[Tensor], weights: tuple[Any, Any]) -> None:
    """Raise ValueError if shapes, dtypes or devices don't fit, see :func:`dense_loss_sum`."""
    fits = not isinstance(logits, Tensor) and 0 < len(logits) == len(labels)
    if not fits or not all(
        x.dim() == 3
        and x.shape[2] > 0
        and x.shape == (*y.shape, logits[0].shape[-1])
        and x.is_floating_point()
        and (x.dtype, x.device) == (logits[0].dtype, logits[0].device)
        and (y.dtype, y.device) == (torch.int64, x.device)
        for x, y in zip(logits, labels, strict=True)
    ):
        raise ValueError(
            "a loss needs a list of logits (N, R_l, K), of one floating dtype and one K >= 1, and "
            "a list of int64 labels (N, R_l), for at least one level and on one device; "
            f"got {_describe(logits)} and {_describe(labels)}"
        )
    num_classes = logits[0].shape[2]
    for weight in weights:
        if isinstance(weight, Tensor) and weight.shape != (num_classes,):
            raise ValueError(f"{weight.numel()} class alphas, but logits of {num_classes} classes")


def _describe(levels: Any) -> str:
    if isinstance(levels, Tensor):
        return f"{levels.dtype} {tuple(levels.shape)} on {levels.device}"
    return f"[{', '.join(map(_describe, levels))}]"


def dense_loss_sum(
    logits: list[Tensor],
    labels: list[Tensor],
    formula: tuple[str, float, float],
    weights: tuple[float, float] | tuple[Tensor, Tensor],
    kernel: str,
) -> Tensor:
    """Σ weight·loss over all anchors and classes; differentiable once, by the logits.

    Args:
        logits: list over levels of (N, R_l, K), all of one dtype that the kernel computes, of any
            strides. fp16 and bf16 are computed in fp32; their gradient is kept in their dtype.
        labels: list over levels of int64 (N, R_l), whose values the caller has checked.
        formula: the loss of one logit, ("focal" or "focal_star", γ, β).
        weights: of an anchor's own class and of every other, two numbers or two tensors (K,).
        kernel: "numba" or "triton".

    Returns:
        0-dim, fp32 or wider.

    Raises:
        ValueError: see :func:`check_levels`.
        RuntimeError: forward-mode differentiation, which the kernels do not have.
    """
    check_levels(logits, labels, weights)
    if not torch.compiler.is_compiling() and any(map(_has_tangent, [*logits, *weights])):
        raise RuntimeError(
            "the loss kernels have no forward-mode derivative (torch.func.jvp): choose the kernel "
            '"plain", whose loss has derivatives of any order'
        )
    numbers, by_class = list(weights), None
    if isinstance(weights[0], Tensor):
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        numbers, by_class = [1.0, 1.0], torch.stack(weights).to(dtype)
        if by_class.requires_grad:
            raise ValueError("the loss weights require a gradient, which the kernels don't compute")
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in logits)
    operator = torch.ops.focal_retina.dense_loss
    total, _ = operator(logits, labels, needs_grad, *formula, numbers, by_class, kernel)
    return total


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def _module(kernel: str) -> ModuleType:
    return importlib.import_module(_MODULES[kernel], __package__)


@torch.library.custom_op("focal_retina::dense_loss", mutates_args=())
def _dense_loss(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: bool,
    formula: str,
    gamma: float,
    beta: float,
    weights: list[float],
    class_weights: Tensor | None,
    kernel: str,
) -> tuple[Tensor, list[Tensor]]:
    total, gradients = _module(kernel).loss_and_gradients(
        [x.contiguous() for x in logits],
        labels,
        needs_grad,
        (formula, gamma, beta),
        weights if class_weights is None else class_weights,
    )
    for i, gradient in enumerate(gradients):
        if not logits[i].is_contiguous():
            gradients[i] = torch.empty_like(logits[i]).copy_(gradient)
    return total, gradients


@_dense_loss.register_fake
def _dense_loss_fake(
    logits: list[Tensor], labels: list[Tensor], needs_grad: bool, *_: Any
) -> tuple[Tensor, list[Tensor]]:
    total = logits[0].new_empty((), dtype=torch.promote_types(logits[0].dtype, torch.float32))
    return total, [torch.empty_like(x) for x in logits if needs_grad]


@torch.library.custom_op("focal_retina::scale_gradients_", mutates_args=("gradients",))
def _scale_gradients_(gradients: list[Tensor], factor: Tensor, kernel: str) -> None:
    scale_ = _module(kernel).scale_
    for gradient in gradients:
        scale_(gradient, factor)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.kernel = inputs[-1]
    ctx.save_for_backward(*output[1])
    # The saved gradients are outputs that nobody differentiates: no zeros in their place.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the loss kernels have no second derivative: call backward without create_graph, or "
            'choose the kernel "plain", whose loss has derivatives of any order'
        )
    gradients = [gradient.detach() for gradient in ctx.saved_tensors]
    # The saved gradient becomes the result, unless another backward may come for it, or this one is
    # being traced (then the tensors are of some subclass): a compiled graph plans its own memory.
    kept = torch._C._autograd._get_current_graph_task_keep_graph()
    if kept or any(type(gradient) is not Tensor for gradient in gradients):
        gradients = [gradient.clone() for gradient in gradients]
    torch.ops.focal_retina.scale_gradients_(gradients, grad_total, ctx.kernel)
    return gradients, [None] * len(gradients), *[None] * 7


_dense_loss.register_autograd(_backward, setup_context=_setup_context)
