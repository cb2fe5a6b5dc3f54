"""FL*, the other form of the focal loss (paper appendix A, Table 3)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .base import KernelLoss
from .kernels import FocalStar
from .registry import CLS_LOSS_REGISTRY


def focal_loss_star(x_t: Tensor, gamma: float, beta: float) -> Tensor:
    """FL* = -log σ(γ·x_t + β) / γ, elementwise; finite, with a finite gradient."""
    return -F.logsigmoid(gamma * x_t + beta) / gamma


@CLS_LOSS_REGISTRY.register()
class FocalLossStar(KernelLoss):
    """-α_t·log(σ(γ·x_t + β)) / γ; γ = 1, β = 0 is α-CE."""

    def __init__(
        self,
        *,
        alpha: float | Sequence[float] = 0.25,
        gamma: float = 2.0,
        beta: float = 1.0,
        kernel: str = "auto",
    ):
        """
        Args:
            alpha, kernel: see :class:`KernelLoss`.
            gamma: γ > 0, steepness.
            beta: β, shift. The paper's Table 3 has (γ, β) = (2, 1) and (4, 0).
        """
        if not gamma > 0:
            raise ValueError(f"gamma is {gamma}: FL* divides by it and needs gamma > 0")
        formula = FocalStar(gamma=float(gamma), beta=float(beta))
        super().__init__(formula=formula, alpha=alpha, kernel=kernel)
        self.gamma = float(gamma)
        self.beta = float(beta)

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        return {
            **super().from_config(cfg, class_counts),
            "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
            "beta": cfg.MODEL.FOCAL_RETINA.CLS_LOSS.BETA,
        }

    def elementwise(self, x_t: Tensor) -> Tensor:
        return focal_loss_star(x_t, self.gamma, self.beta)
