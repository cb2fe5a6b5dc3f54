"""The two formulas of the loss family, in the form that the kernels evaluate.

A label does no more than turn the sign of a logit, so that one function serves both. With
z = -x_t, that is z = x for a negative and z = -x for a positive (paper section 3 and appendix A):

| formula   | loss                   | slope, d loss / dz                          |
|-----------|------------------------|---------------------------------------------|
| Focal     | σ(z)^γ·softplus(z)     | σ(z)^γ·(σ(z) + γ·softplus(z)·(1 - σ(z)))    |
| FocalStar | softplus(γ·z - β) / γ  | σ(γ·z - β)                                  |

The derivative by x is the slope for a negative and minus the slope for a positive. Cross-entropy
is Focal(0) and FocalStar(1, 0).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

# Where softplus(z) - z is below the last digit, even in fp64.
_SOFTPLUS_IS_IDENTITY = 40.0
# Below it σ(z)^γ is 1 to the last digit of fp64, for |z| up to 1e4.
_GAMMA_IS_ZERO = 1e-20


@dataclass(frozen=True)
class FocalStar:
    """FL*: softplus(γ·z - β) / γ; γ > 0."""

    gamma: float
    beta: float
    name: ClassVar[str] = "focal_star"

    @property
    def loss_scale(self) -> float:
        """What :meth:`evaluate` multiplies the loss by."""
        return self.gamma

    def evaluate(
        self,
        z: Tensor,
        weight: float | Tensor,
        scratch: list[Tensor],
        slope: Tensor | None,
        *,
        large: bool,
    ) -> Tensor:
        """Weighted loss and slope, elementwise, without allocating.

        Args:
            z: of any shape, fp32 or fp64.
            weight: a number, or a tensor that broadcasts to z.
            scratch: three tensors like z, contiguous, to be overwritten.
            slope: like z, takes weight·slope; None: not computed.
            large: takes z above 80, too, where exp overflows and the loss is infinite without
                ``large``; slower.

        Returns:
            loss_scale·weight·loss, one of the scratch tensors.
        """
        loss, shifted, _ = scratch
        if (self.gamma, self.beta) != (1.0, 0.0):
            z = torch.mul(z, self.gamma, out=shifted).sub_(self.beta)
        _softplus(z, out=loss, large=large)
        if slope is not None:
            torch.sigmoid(z, out=slope).mul_(weight)
        return loss.mul_(weight)


@dataclass(frozen=True)
class Focal:
    """FL: σ(z)^γ·softplus(z); γ ≥ 0."""

    gamma: float
    name: ClassVar[str] = "focal"

    @property
    def loss_scale(self) -> float:
        """What :meth:`evaluate` multiplies the loss by."""
        return 1.0 if self.gamma < _GAMMA_IS_ZERO else self.gamma

    def evaluate(
        self,
        z: Tensor,
        weight: float | Tensor,
        scratch: list[Tensor],
        slope: Tensor | None,
        *,
        large: bool,
    ) -> Tensor:
        """As :meth:`FocalStar.evaluate`."""
        if self.gamma < _GAMMA_IS_ZERO:
            return FocalStar(1.0, 0.0).evaluate(z, weight, scratch, slope, large=large)
        loss, p, modulation = scratch
        zero = z.new_zeros(())
        torch.sigmoid(z, out=p)
        if self.gamma == 2 and isinstance(weight, float):
            torch.addcmul(zero, p, p, value=weight, out=modulation)
        else:
            torch.pow(p, self.gamma, out=modulation).mul_(weight)
        _softplus(z, out=loss, large=large)
        torch.addcmul(zero, modulation, loss, value=self.gamma, out=loss)
        if slope is not None:
            # p·modulation + (1 - p)·γ·loss
            torch.lerp(loss, modulation, p, out=slope)
        return loss


def _softplus(z: Tensor, out: Tensor, large: bool) -> Tensor:
    if large:
        return torch.ops.aten.softplus.out(z, 1, _SOFTPLUS_IS_IDENTITY, out=out)
    # In half the time of ATen's softplus.
    return torch.log1p(torch.exp(z, out=out), out=out)


Formula = Focal | FocalStar
FORMULAS: dict[str, type[Focal] | type[FocalStar]] = {f.name: f for f in (Focal, FocalStar)}
