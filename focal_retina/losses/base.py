"""The readable definition of the loss family: log space, integer labels, ordinary autograd.

N images, R_l anchors of level l, K classes. y = +1 for an anchor's own class and -1 for every
other (a background anchor has none of its own), x a logit, x_t = y·x, p_t = σ(x_t) (paper
section 3). Whatever the kernels compute is tested against this file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .class_alpha import check_alpha, resolve_alpha
from .kernels import Focal, FocalStar, dense_loss_sum


def dense_loss(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    labels: Tensor,
    positive_weight: float | Tensor = 1.0,
    negative_weight: float | Tensor = 1.0,
) -> Tensor:
    """α_t·f(x_t) of every anchor and class, and 0 where the anchor is ignored.

    Args:
        f: elementwise function of x_t.
        logits: (…, R, K), of any floating dtype; narrower ones than fp32 are computed in fp32.
        labels: int64 (…, R).
        positive_weight, negative_weight: α_t for y = +1 and y = -1, one number or (K,).

    Returns:
        (…, R, K), fp32 or wider.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_own_class = labels.unsqueeze(-1) == torch.arange(x.shape[-1], device=labels.device)
    is_ignored = (labels < 0).unsqueeze(-1)
    # Masked before f too: behind f alone, an infinite ignored logit would have a NaN gradient.
    x_t = torch.where(is_own_class, x, -x).masked_fill(is_ignored, 0)
    loss = f(x_t)
    weighted = torch.where(is_own_class, positive_weight * loss, negative_weight * loss)
    return weighted.masked_fill(is_ignored, 0)


class DenseLoss(nn.Module):
    """Sum of α_t·f(x_t) over all anchors and classes; a subclass says what f is.

    It brings all but the formula: levels, ignored anchors, α, precision, an empty batch. Any
    number of derivatives can be taken.
    """

    needs_anchors = False

    def __init__(self, *, alpha: float | Sequence[float] = -1.0):
        """
        Args:
            alpha: weight of positives, and 1 - alpha that of negatives: one number in [0, 1], one
                per class (K numbers), or negative for no weights.
        """
        super().__init__()
        check_alpha(alpha)
        self.alpha: float | Tensor
        if isinstance(alpha, Sequence):
            # Not persistent: the state dict of a model has Detectron2's keys, whatever its loss.
            self.register_buffer("alpha", torch.tensor(list(alpha)), persistent=False)
        else:
            self.alpha = float(alpha)

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        return {
            "alpha": resolve_alpha(
                cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
                cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA,
                cfg.MODEL.RETINANET.NUM_CLASSES,
                class_counts,
            )
        }

    @property
    def weights(self) -> tuple[float | Tensor, float | Tensor]:
        """α_t of positives and of negatives, two numbers or two (K,) tensors."""
        if isinstance(self.alpha, float) and self.alpha < 0:
            return 1.0, 1.0
        return self.alpha, 1 - self.alpha

    def elementwise(self, x_t: Tensor) -> Tensor:
        """f: the unweighted loss of each element, from x_t in fp32 or wider, of any shape."""
        raise NotImplementedError

    def forward(self, logits: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            logits: list over levels of (N, R_l, K).
            labels: list over levels of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background.

        Returns:
            The sum, 0-dim, fp32 or wider; and None: divide by the foreground normalizer.

        Raises:
            ValueError: shapes that don't fit; on the CPU, a label outside -1 … K (on CUDA that
                check would wait for the device: the anchor labeling answers for it).
        """
        self.check_inputs(logits, labels)
        return self.dense_sum(logits, labels), None

    def dense_sum(self, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        levels = zip(logits, labels, strict=True)
        sums = [dense_loss(self.elementwise, x, y, *self.weights).sum() for x, y in levels]
        return torch.stack(sums).sum()

    def check_inputs(self, logits: list[Tensor], labels: list[Tensor]) -> None:
        if not logits or [x.shape[:-1] for x in logits] != [y.shape for y in labels]:
            raise ValueError(
                "each level needs logits (N, R_l, K) and labels (N, R_l), at least one level; got "
                f"{[tuple(x.shape) for x in logits]} and {[tuple(y.shape) for y in labels]}"
            )
        num_classes = logits[0].shape[-1]
        if isinstance(self.alpha, Tensor) and len(self.alpha) != num_classes:
            raise ValueError(f"{len(self.alpha)} class alphas, but logits of {num_classes} classes")
        for level_labels in labels:
            _check_label_range(level_labels, num_classes)


def _check_label_range(labels: Tensor, num_classes: int) -> None:
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    lowest, highest = (int(extreme) for extreme in labels.aminmax())
    if lowest < -1 or highest > num_classes:
        raise ValueError(
            f"labels from {lowest} to {highest}, where -1 is ignored, 0 … {num_classes - 1} are "
            f"classes and {num_classes} is background: NUM_CLASSES does not fit the data"
        )


class KernelLoss(DenseLoss):
    """A dense loss whose formula the kernels know, too."""

    def __init__(
        self,
        *,
        formula: Focal | FocalStar,
        alpha: float | Sequence[float] = -1.0,
        kernel: str = "auto",
    ):
        """
        Args:
            formula: what the kernels compute; the same function as :meth:`elementwise`.
            alpha: see :class:`DenseLoss`.
            kernel: ``"plain"`` for the readable form, else see
                :func:`focal_retina.losses.kernels.dense_loss_sum`. All give the same numbers.
        """
        super().__init__(alpha=alpha)
        self.formula = formula
        self.kernel = kernel

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        kernel = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL
        return {**super().from_config(cfg, class_counts), "kernel": kernel}

    def dense_sum(self, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        if self.kernel == "plain":
            return super().dense_sum(logits, labels)
        positive_weight, negative_weight = self.weights
        return dense_loss_sum(
            logits,
            labels,
            formula=self.formula,
            positive_weight=positive_weight,
            negative_weight=negative_weight,
            kernel=self.kernel,
        )
