"""The focal loss (paper section 3.2, Tables 1b and 1e)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .base import KernelLoss
from .kernels import Focal
from .registry import CLS_LOSS_REGISTRY


def focal_loss(x_t: Tensor, gamma: float) -> Tensor:
    """FL = -(1 - p_t)^γ·log p_t, elementwise, with p_t = σ(x_t).

    Computed in log space, where both p_t and 1 - p_t keep their digits: finite, with a finite
    gradient, for every γ ≥ 0 and every finite x_t. As a power of 1 - p_t, which rounds to 0 at
    x_t ≈ 17 in fp32, its gradient would be NaN there for γ < 1.
    """
    log_p_t = F.logsigmoid(x_t)
    log_1_minus_p_t = F.logsigmoid(-x_t)
    return -(gamma * log_1_minus_p_t).exp() * log_p_t


@CLS_LOSS_REGISTRY.register()
class FocalLoss(KernelLoss):
    """-α_t·(1 - p_t)^γ·log p_t; γ = 0 is α-CE."""

    def __init__(
        self,
        *,
        alpha: float | Sequence[float] = 0.25,
        gamma: float = 2.0,
        kernel: str = "auto",
    ):
        """
        Args:
            alpha, kernel: see :class:`KernelLoss`.
            gamma: γ ≥ 0, how fast easy examples lose their weight.
        """
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}: the focal loss needs gamma >= 0")
        super().__init__(formula=Focal(gamma=float(gamma)), alpha=alpha, kernel=kernel)
        self.gamma = float(gamma)

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        gamma = cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA
        return {**super().from_config(cfg, class_counts), "gamma": gamma}

    def elementwise(self, x_t: Tensor) -> Tensor:
        return focal_loss(x_t, self.gamma)
