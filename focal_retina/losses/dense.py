"""CE, FL and FL*: the sum of a formula over all anchors and classes, in log space.

y = +1 for an anchor's own class and -1 for every other class (a background anchor has no own
class), x a logit, x_t = y·x, p_t = σ(x_t) (paper section 3). The formulas here are the readable
ones, with ordinary autograd. :mod:`focal_retina.losses.ops` computes the same numbers faster.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from .alpha import Alpha, alpha_from_config
from .ops import KERNELS, Formula, Weights, choose_kernel, dense_loss_sum

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = "Classification losses; focal_retina.losses has their contract."

# Of γ and β. Nobody needs larger ones; their products with a logit would overflow at last.
_LARGEST = 1e4


def build_cls_loss(cfg: Any, class_counts: Sequence[int] | None = None) -> nn.Module:
    """Build the loss that ``MODEL.FOCAL_RETINA.CLS_LOSS.NAME`` names; ValueError for an unknown
    name, or values that the loss refuses. ``class_counts``: the objects of each class in the
    training set, for ``CLS_LOSS.CLASS_ALPHA: auto``."""
    name = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME
    if name not in CLS_LOSS_REGISTRY:
        known = ", ".join(sorted(key for key, _ in CLS_LOSS_REGISTRY))
        raise ValueError(
            f"MODEL.FOCAL_RETINA.CLS_LOSS.NAME is {name!r}, but the registered losses are {known}. "
            "Import the file of a loss of your own before you build the model."
        )
    loss_class: Any = CLS_LOSS_REGISTRY.get(name)
    from_config = getattr(loss_class, "from_config", None)
    return loss_class(**(from_config(cfg, class_counts) if from_config else {}))


def dense_loss(
    f: Callable[[Tensor], Tensor], logits: Tensor, labels: Tensor, weights: Weights
) -> Tensor:
    """α_t·f(x_t) of every anchor and class, (…, R, K) in fp32 or wider, and 0 where the anchor is
    ignored; of logits (…, R, K), labels (…, R), f elementwise, and the α_t of y = +1 and y = -1,
    each one number or (K,)."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_own_class = labels.unsqueeze(-1) == torch.arange(x.shape[-1], device=labels.device)
    is_ignored = (labels < 0).unsqueeze(-1)
    # Masked before f, too: otherwise an infinite ignored logit would have a NaN gradient.
    x_t = torch.where(is_own_class, x, -x).masked_fill(is_ignored, 0)
    loss = f(x_t)
    weighted = torch.where(is_own_class, weights[0] * loss, weights[1] * loss)
    return weighted.masked_fill(is_ignored, 0)


class DenseLoss(nn.Module):
    """Sum of α_t·f(x_t) over all anchors and classes; a subclass defines f as ``elementwise``."""

    takes_normalizer = True
    # That of f in :mod:`focal_retina.losses.ops`; None: only the plain form computes it.
    formula: Formula | None = None

    def __init__(self, *, alpha: Alpha = -1.0, kernel: str = "auto"):
        """
        Args:
            alpha: weight of positives; negatives weigh 1 - alpha. One number in [0, 1], one per
                class (K numbers), or a negative number for no weights.
            kernel: ``"numba"`` (CPU; fp32 and bf16), ``"triton"`` (CUDA; not fp64), ``"plain"``, or
                ``"auto"``: the first that can compute the logits. All give the same numbers.
                Only the plain form has derivatives of any order. FL then keeps 7 times the bytes
                of fp32 logits for backward (15 times those of fp16); other kernels keep them once.
        """
        super().__init__()
        # The kernels know the formulas of this file alone, and none that a subclass changes.
        self.is_in_kernels = type(self).elementwise.__module__ == __name__
        if kernel not in KERNELS:
            raise ValueError(f"no loss kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
        self.kernel = kernel
        self.alpha: float | Tensor
        if isinstance(alpha, Sequence):
            wrong = {k: a for k, a in enumerate(alpha) if not 0 <= a <= 1}
            if wrong or not alpha:
                raise ValueError(f"a class's alpha is in [0, 1]; of {len(alpha)}, wrong: {wrong}")
            # Not persistent: the state dict of a model has Detectron2's keys, whatever its loss.
            self.register_buffer("alpha", torch.tensor(list(alpha)), persistent=False)
        elif alpha <= 1:
            self.alpha = float(alpha)
        else:
            raise ValueError(f"alpha is {alpha}: it is in [0, 1], or negative for no weighting")

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        """The constructor's arguments alpha, gamma, beta and kernel, as far as it, or one that it
        hands ``**kwargs`` on to, has them."""
        retinanet, node = cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_RETINA.CLS_LOSS
        values = {"gamma": retinanet.FOCAL_LOSS_GAMMA, "beta": node.BETA, "kernel": node.KERNEL}
        values["alpha"] = alpha_from_config(cfg, class_counts)
        names: list[str] = []
        for base in (x for x in cls.__mro__ if "__init__" in vars(x)):
            own = signature(base).parameters
            names += own
            if all(x.kind is not x.VAR_KEYWORD for x in own.values()):
                break
        return {name: values[name] for name in names if name in values}

    @property
    def weights(self) -> Weights:
        """α_t of positives and of negatives, two numbers or two (K,) tensors."""
        if isinstance(self.alpha, Tensor):
            return self.alpha, 1 - self.alpha
        return (self.alpha, 1 - self.alpha) if self.alpha >= 0 else (1.0, 1.0)

    def elementwise(self, x_t: Tensor) -> Tensor:
        """f: the unweighted loss of each element of x_t (any shape, fp32 or wider)."""
        raise NotImplementedError

    def forward(
        self, logits: list[Tensor], labels: list[Tensor], normalizer: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :mod:`focal_retina.losses`; the count is None. ValueError: shapes or dtypes do not
        fit; on a CPU also a label outside -1 … K. (On CUDA the check would wait for the device;
        there, only the ground truth is checked.)"""
        self.check_inputs(logits, labels)
        kernel = choose_kernel(self.kernel, logits[0].device.type, logits[0].dtype)
        weights = self.weights
        if self.formula is not None and self.is_in_kernels and kernel != "plain":
            return dense_loss_sum(logits, labels, self.formula, weights, kernel, normalizer), None
        levels = zip(logits, labels, strict=True)
        sums = [dense_loss(self.elementwise, x, y, weights).sum() for x, y in levels]
        total = torch.stack(sums).sum()
        return total if normalizer is None else total / normalizer, None

    def check_inputs(self, logits: list[Tensor], labels: list[Tensor]) -> None:
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
                "a loss needs a list of logits (N, R_l, K), of one floating dtype and one K >= 1, "
                "and a list of int64 labels (N, R_l), for at least one level and on one device; "
                f"got {_describe(logits)} and {_describe(labels)}"
            )
        num_classes = logits[0].shape[-1]
        if isinstance(self.alpha, Tensor) and len(self.alpha) != num_classes:
            raise ValueError(f"{len(self.alpha)} class alphas, but logits of {num_classes} classes")
        are_read = labels[0].device.type == "cpu" and not torch.compiler.is_compiling()
        for lowest, highest in (map(int, y.aminmax()) for y in labels if are_read and y.numel()):
            if lowest < -1 or highest > num_classes:
                raise ValueError(
                    f"labels from {lowest} to {highest}, but NUM_CLASSES allows -1 (ignored), "
                    f"0 … {num_classes - 1} (classes) and {num_classes} (background)"
                )


def _describe(levels: Any) -> str:
    if isinstance(levels, Tensor):
        return f"{levels.dtype} {tuple(levels.shape)} on {levels.device}"
    return f"[{', '.join(map(_describe, levels))}]"


@CLS_LOSS_REGISTRY.register()
class CrossEntropy(DenseLoss):
    """-α_t·log p_t, the binary cross-entropy of every anchor and class (section 3.1, Table 1a).

    For CE without weights set ``MODEL.RETINANET.FOCAL_LOSS_ALPHA`` to -1.0; its default is .25.
    """

    formula = ("focal", 0.0, 0.0)

    def elementwise(self, x_t: Tensor) -> Tensor:
        return -F.logsigmoid(x_t)


def focal_loss(x_t: Tensor, gamma: float) -> Tensor:
    """FL = -(1 - p_t)^γ·log p_t, elementwise, with p_t = σ(x_t). In log space p_t and 1 - p_t keep
    their digits. As a power of 1 - p_t, which rounds to 0 at x_t ≈ 17 in fp32, the gradient would
    be NaN there for γ < 1."""
    return -(gamma * F.logsigmoid(-x_t)).exp() * F.logsigmoid(x_t)


@CLS_LOSS_REGISTRY.register()
class FocalLoss(DenseLoss):
    """-α_t·(1 - p_t)^γ·log p_t; γ = 0 is α-CE (section 3.2, Tables 1b and 1e)."""

    def __init__(self, *, alpha: Alpha = 0.25, gamma: float = 2.0, kernel: str = "auto"):
        if not 0 <= gamma <= _LARGEST:
            raise ValueError(f"gamma is {gamma}: FL needs 0 <= gamma <= {_LARGEST:g}")
        super().__init__(alpha=alpha, kernel=kernel)
        self.gamma = float(gamma)
        self.formula = ("focal", self.gamma, 0.0)

    def elementwise(self, x_t: Tensor) -> Tensor:
        return focal_loss(x_t, self.gamma)


def focal_loss_star(x_t: Tensor, gamma: float, beta: float) -> Tensor:
    """FL* = -log σ(γ·x_t + β) / γ, elementwise; finite, with a finite gradient."""
    return -F.logsigmoid(gamma * x_t + beta) / gamma


@CLS_LOSS_REGISTRY.register()
class FocalLossStar(DenseLoss):
    """-α_t·log(σ(γ·x_t + β)) / γ; γ = 1, β = 0 is α-CE (appendix A; its Table 3 has (γ, β) =
    (2, 1) and (4, 0))."""

    def __init__(
        self, *, alpha: Alpha = 0.25, gamma: float = 2.0, beta: float = 1.0, kernel: str = "auto"
    ):
        if not (1 / _LARGEST <= gamma <= _LARGEST and abs(beta) <= _LARGEST):
            raise ValueError(
                f"gamma is {gamma} and beta {beta}: FL* needs {1 / _LARGEST:g} <= gamma <= "
                f"{_LARGEST:g} (it divides by gamma) and {-_LARGEST:g} <= beta <= {_LARGEST:g}"
            )
        super().__init__(alpha=alpha, kernel=kernel)
        self.gamma, self.beta = float(gamma), float(beta)
        self.formula = ("focal_star", self.gamma, self.beta)

    def elementwise(self, x_t: Tensor) -> Tensor:
        return focal_loss_star(x_t, self.gamma, self.beta)
