"""The losses as curves: the paper's figures 1, 5, 6 and 7. The values come from the loss modules'
readable form, the derivatives from the backward pass that a training calls."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import write_json
from ..losses import CrossEntropy, DenseLoss, FocalLoss, FocalLossStar
from . import SERIES_COLORS, new_figure, style_axes

_NONE = -1.0  # no weights


class LossFigure(NamedTuple):
    name: str
    title: str
    x_label: str
    quantity: str  # which field of the curves it shows: "loss" or "gradient"
    x: list[float]
    # Of a positive: "label", the loss's "parameters", "loss" over x, and "gradient", that by x_t
    curves: list[dict[str, Any]]


def evaluate(loss: DenseLoss, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative by x_t of the loss of positives with logits ``x_t`` (M,), α included."""
    logits = x_t.detach().clone()[:, None].requires_grad_()
    labels = torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device)
    total, _ = loss([logits[None]], [labels[None]])
    (gradient,) = torch.autograd.grad(total, logits)
    return loss.weights[0] * loss.elementwise(x_t), gradient[:, 0]


def figures() -> list[LossFigure]:
    """Figures 1, over p_t, and 5, 6 and 7, over x_t = y·x."""
    p_t = torch.linspace(0.005, 0.995, 397, dtype=torch.float64)
    x_t = torch.linspace(-5, 5, 401, dtype=torch.float64)
    focal = {f"γ = {gamma:g}": FocalLoss(alpha=_NONE, gamma=gamma) for gamma in (0, 0.5, 1, 2, 5)}
    compared = {
        "CE": CrossEntropy(alpha=_NONE),
        "FL, γ = 2": FocalLoss(alpha=_NONE, gamma=2),
        "FL*, γ = 2, β = 1": FocalLossStar(alpha=_NONE, gamma=2, beta=1),
        "FL*, γ = 4, β = 0": FocalLossStar(alpha=_NONE, gamma=4, beta=0),
    }
    # The paper does not list what its figure 7 shows. This grid holds α-CE, which is γ 1, β 0, and
    # both settings of Table 3: γ 2, β 1 and γ 4, β 0.
    star = {
        f"γ = {gamma:g}, β = {beta:g}": FocalLossStar(alpha=0.25, gamma=gamma, beta=beta)
        for gamma, beta in product((1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 2.0))
    }
    title = "Focal loss: the larger γ, the less an easy example counts"
    p_label, x_label = "probability of the true class, $p_t$", "$x_t = y \\cdot x$"
    over_x_t, x = _curves(compared, x_t), x_t.tolist()
    return [
        LossFigure("fig1", title, p_label, "loss", p_t.tolist(), _curves(focal, p_t.logit())),
        LossFigure("fig5", "CE, FL and FL*: loss", x_label, "loss", x, over_x_t),
        LossFigure("fig6", "CE, FL and FL*: derivative", x_label, "gradient", x, over_x_t),
        LossFigure("fig7", "FL* of a positive, α = .25", x_label, "loss", x, _curves(star, x_t)),
    ]


def _curves(losses: Mapping[str, DenseLoss], x_t: Tensor) -> list[dict[str, Any]]:
    curves = []
    for label, loss in losses.items():
        parameters = {x: getattr(loss, x) for x in ("alpha", "gamma", "beta") if hasattr(loss, x)}
        values, gradient = (y.tolist() for y in evaluate(loss, x_t))
        curve = {"label": label, "parameters": parameters, "loss": values, "gradient": gradient}
        curves.append(curve)
    return curves


def write_loss_figure(data: LossFigure, folder: Path) -> Path:
    """Write the figure's numbers as NAME.json, and as NAME.png, which is returned, its picture."""
    figure = new_figure(6.5, 4.5)
    axes = figure.add_subplot(xlabel=data.x_label)
    style_axes(axes, data.title)
    dashes = ("-", "--", ":") if len(data.curves) > len(SERIES_COLORS) else ("-",)
    for curve, (color, dash) in zip(data.curves, product(SERIES_COLORS, dashes), strict=False):
        style: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.8}
        axes.plot(data.x, curve[data.quantity], label=curve["label"], **style)
    axes.set(xmargin=0, ylabel="derivative of the loss by $x_t$")
    if data.quantity == "loss":
        axes.set(ylim=(0, None), ylabel="loss")
    axes.legend(frameon=False, ncols=len(dashes))
    picture = folder / f"{data.name}.png"
    figure.savefig(picture)
    write_json(picture.with_suffix(".json"), data._asdict(), indent=None)
    return picture
