"""An independent definition of the loss for the tests of the kernels."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

Weight = float | Tensor


def _loss_of_logit(x_t: Tensor, name: str, gamma: float, beta: float) -> Tensor:
    """The paper's definitions: section 3 and appendix A."""
    if name == "focal_star":
        return -F.logsigmoid(gamma * x_t + beta) / gamma
    return -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))


def _reference_sum(
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    formula: tuple[str, float, float],
    positive_weight: Weight = 1.0,
    negative_weight: Weight = 1.0,
) -> Tensor:
    """In float64 and with ordinary autograd, one-hot targets and masks."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(logits, labels, strict=True):
        num_classes = x.shape[2]
        target = F.one_hot(y.clamp(min=0), num_classes + 1)[..., :num_classes][y >= 0].bool()
        x = x.double()[y >= 0]
        positive = positive_weight * _loss_of_logit(x, *formula)
        negative = negative_weight * _loss_of_logit(-x, *formula)
        total = total + positive[target].sum() + negative[~target].sum()
    return total


@pytest.fixture(scope="session")
def reference_sum() -> Callable[..., Tensor]:
    return _reference_sum
