"""The sum of a dense loss as one differentiable operator, whichever kernel computes it.

Forward computes loss and gradient together and keeps nothing but the gradient; backward multiplies
it, in place, by the gradient of the sum. As a custom operator it is one opaque node to
``torch.compile``, while the model round it is compiled.
"""

import functools
import importlib
import importlib.util
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .formulas import FORMULAS, Formula
from .memory import GRADIENT_SCALE

# Modules that implement loss_and_gradients and scale_, imported when first used: neither Numba nor
# Triton is installed everywhere.
KERNELS = {"blocked": ".blocked", "compiled": ".compiled", "triton": ".triton_kernel"}


def dense_loss_sum(
    logits: list[Tensor],
    labels: list[Tensor],
    *,
    formula: Formula,
    positive_weight: float | Tensor = 1.0,
    negative_weight: float | Tensor = 1.0,
    kernel: str = "auto",
) -> Tensor:
    """Σ weight·loss over all images, levels, anchors and classes (paper section 3).

    N images, R_l anchors of level l, K classes. Differentiable once, by the logits.

    Args:
        logits: list over levels of (N, R_l, K), all of one dtype (fp16, bf16, fp32 or fp64), of any
            strides. fp16 and bf16 are computed in fp32; their gradient is kept in their dtype,
            which in fp16 has room for weights up to 8.
        labels: list over levels of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background.
            Other values are the caller's to exclude: a look at them would wait for the device.
        formula: the loss of one logit.
        positive_weight: weight of an anchor's own class, a number or (K,).
        negative_weight: weight of every other class, a number or (K,).
        kernel: "blocked", "compiled" (CPU), "triton" (CUDA), or "auto": the fastest of those that
            can run.

    Returns:
        0-dim, fp32 or wider.

    Raises:
        ValueError: an unknown kernel, no level, or weights that require a gradient.
        RuntimeError: in backward, where a second derivative is asked for.
    """
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(f"no loss kernel {kernel!r}: choose one of {['auto', *KERNELS]}")
    if not logits:
        raise ValueError("the loss needs the logits of at least one level")
    total, _ = torch.ops.focal_retina.dense_loss(
        logits,
        labels,
        [torch.is_grad_enabled() and x.requires_grad for x in logits],
        formula.name,
        # not astuple, whose copies PyTorch 2.8 cannot trace
        [getattr(formula, field.name) for field in fields(formula)],
        *_numbers_or_tensor(logits[0], positive_weight, negative_weight),
        kernel,
    )
    return total


def _numbers_or_tensor(
    logits: Tensor, *weights: float | Tensor
) -> tuple[list[float], Tensor | None]:
    """The weights as an operator's schema can have them: two numbers, or else one (2, K) tensor."""
    if not any(isinstance(w, Tensor) for w in weights):
        return [float(w) for w in weights], None
    if any(isinstance(w, Tensor) and w.requires_grad for w in weights):
        raise ValueError("the loss weights require a gradient, which the kernels don't compute")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    new_full = logits.new_full  # of a number, without waiting for the device
    tensors = [w if isinstance(w, Tensor) else new_full((), w, dtype=dtype) for w in weights]
    return [1.0, 1.0], torch.stack([w.to(dtype).expand(logits.shape[2]) for w in tensors])


def _load_kernel(name: str, device: torch.device) -> ModuleType:
    name = _fastest_kernel(device) if name == "auto" else name
    return importlib.import_module(KERNELS[name], __package__)


@functools.cache
def _fastest_kernel(device: torch.device) -> str:
    if device.type == "cpu" and _is_installed("numba"):
        return "compiled"
    if device.type == "cuda" and _is_installed("triton"):
        return "triton" if torch.cuda.get_device_capability(device) >= (7, 0) else "blocked"
    return "blocked"


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


@torch.library.custom_op("focal_retina::dense_loss", mutates_args=())
def _dense_loss(
    logits: list[Tensor],
    labels: list[Tensor],
    needs_grad: list[bool],
    formula: str,
    parameters: list[float],
    weights: list[float],
    class_weights: Tensor | None,
    kernel: str,
) -> tuple[Tensor, list[Tensor]]:
    implementation = _load_kernel(kernel, logits[0].device)
    positive_weight, negative_weight = weights if class_weights is None else class_weights
    return implementation.loss_and_gradients(
        logits,
        labels,
        needs_grad,
        FORMULAS[formula](*parameters),
        positive_weight,
        negative_weight,
    )


@_dense_loss.register_fake
def _dense_loss_fake(
    logits: list[Tensor], labels: list[Tensor], needs_grad: list[bool], *_: Any
) -> tuple[Tensor, list[Tensor]]:
    total = logits[0].new_empty((), dtype=torch.promote_types(logits[0].dtype, torch.float32))
    return total, [torch.empty_like(x) for x, n in zip(logits, needs_grad, strict=True) if n]


@torch.library.custom_op("focal_retina::scale_gradients_", mutates_args=("gradients",))
def _scale_gradients_(gradients: list[Tensor], factor: Tensor, kernel: str) -> None:
    scale_ = _load_kernel(kernel, factor.device).scale_
    for gradient in gradients:
        scale_(gradient, factor / GRADIENT_SCALE.get(gradient.dtype, 1.0))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    _, _, ctx.needs_grad, *_, ctx.kernel = inputs
    ctx.save_for_backward(*output[1])
    # The saved gradients are outputs that nobody differentiates: no zeros in their place.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_total: Tensor | None, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the loss kernels have no second derivative: call backward without create_graph, or "
            'choose the kernel "plain", whose loss has derivatives of any order'
        )
    by_level: list[Tensor | None] = [None] * len(ctx.needs_grad)
    if grad_total is not None:
        scaled = iter(_scaled(ctx.saved_tensors, grad_total, ctx.kernel))
        by_level = [next(scaled) if needed else None for needed in ctx.needs_grad]
    return by_level, [None] * len(by_level), *[None] * 6


def _scaled(saved: tuple[Tensor, ...], factor: Tensor, kernel: str) -> list[Tensor]:
    gradients = [gradient.detach() for gradient in saved]
    # The saved gradient becomes the result, unless another backward may come for it, or this one is
    # being traced (then the tensors are of some subclass): a compiled graph plans its own memory.
    kept = torch._C._autograd._get_current_graph_task_keep_graph()
    if kept or any(type(gradient) is not Tensor for gradient in gradients):
        gradients = [gradient.clone() for gradient in gradients]
    torch.ops.focal_retina.scale_gradients_(gradients, factor, kernel)
    return gradients


_dense_loss.register_autograd(_backward, setup_context=_setup_context)
