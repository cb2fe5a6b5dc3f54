"""The loss family as curves: the numbers of the paper's figures 1, 5, 6 and 7.

They come from the loss modules themselves: values from their readable form, derivatives from the
backward pass of what a training calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import CrossEntropy, DenseLoss, FocalLoss, FocalLossStar
from ..losses.dense import dense_loss

# The paper does not list what its figure 7 shows. This grid holds α-CE, which is (γ, β) = (1, 0),
# and both settings of Table 3, (2, 1) and (4, 0).
FIGURE_7_GAMMAS = (1.0, 2.0, 3.0, 4.0)
FIGURE_7_BETAS = (0.0, 1.0, 2.0)

_FIGURE_1_GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
_UNWEIGHTED = -1.0

_NamedLoss = tuple[str, str, DenseLoss]


@dataclass(frozen=True)
class LossCurve:
    """One loss, for a positive: its values and its derivative by x_t, over the figure's x.

    ``family`` and ``variant`` name it; where only the former is needed the latter is empty.
    """

    family: str
    variant: str
    parameters: dict[str, float]
    loss: list[float]
    gradient: list[float]


@dataclass(frozen=True)
class LossFigure:
    """One figure. ``quantity`` says which field of the curves it shows."""

    name: str
    title: str
    x_label: str
    quantity: str
    x: list[float]
    curves: list[LossCurve]


def evaluate(loss: DenseLoss, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative by x_t of the loss of positives, whose x_t is their logit.

    Args:
        loss: of one α, or of one class.
        x_t: (M,), fp32 or fp64.

    Returns:
        Two tensors like ``x_t``, α included.
    """
    logits = x_t.detach().clone()[:, None].requires_grad_()
    labels = torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device)
    total, _ = loss([logits[None]], [labels[None]])
    (gradient,) = torch.autograd.grad(total, logits)
    values = dense_loss(loss.elementwise, logits.detach(), labels, *loss.weights)
    return values[:, 0], gradient[:, 0]


def figures() -> list[LossFigure]:
    """Figures 1, over p_t, and 5, 6 and 7, over x_t = y·x."""
    p_t = torch.linspace(0.005, 0.995, 397, dtype=torch.float64)
    x_t = torch.linspace(-5, 5, 401, dtype=torch.float64)
    focal: list[_NamedLoss] = [
        (f"γ = {gamma:g}", "", FocalLoss(alpha=_UNWEIGHTED, gamma=gamma))
        for gamma in _FIGURE_1_GAMMAS
    ]
    compared: list[_NamedLoss] = [
        ("CE", "", CrossEntropy(alpha=_UNWEIGHTED)),
        ("FL, γ = 2", "", FocalLoss(alpha=_UNWEIGHTED, gamma=2)),
        ("FL*, γ = 2, β = 1", "", FocalLossStar(alpha=_UNWEIGHTED, gamma=2, beta=1)),
        ("FL*, γ = 4, β = 0", "", FocalLossStar(alpha=_UNWEIGHTED, gamma=4, beta=0)),
    ]
    star: list[_NamedLoss] = [
        (f"γ = {gamma:g}", f"β = {beta:g}", FocalLossStar(alpha=0.25, gamma=gamma, beta=beta))
        for gamma in FIGURE_7_GAMMAS
        for beta in FIGURE_7_BETAS
    ]
    x_label = "$x_t = y \\cdot x$"
    over_x_t = _curves(compared, x_t)
    x = x_t.tolist()
    return [
        LossFigure(
            "fig1",
            "Focal loss: the larger γ, the less an easy example counts",
            "probability of the true class, $p_t$",
            "loss",
            p_t.tolist(),
            _curves(focal, p_t.logit()),
        ),
        LossFigure("fig5", "CE, FL and FL*: loss", x_label, "loss", x, over_x_t),
        LossFigure("fig6", "CE, FL and FL*: derivative", x_label, "gradient", x, over_x_t),
        LossFigure("fig7", "FL* of a positive, α = .25", x_label, "loss", x, _curves(star, x_t)),
    ]


def _curves(losses: Sequence[_NamedLoss], x_t: Tensor) -> list[LossCurve]:
    curves = []
    for family, variant, loss in losses:
        values, gradient = evaluate(loss, x_t)
        parameters = {
            name: getattr(loss, name) for name in ("alpha", "gamma", "beta") if hasattr(loss, name)
        }
        curves.append(LossCurve(family, variant, parameters, values.tolist(), gradient.tolist()))
    return curves
