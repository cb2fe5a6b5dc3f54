"""Random batches, configs, and an independent definition of the losses."""

from collections.abc import Callable, Sequence

import pytest
import torch
from detectron2.config import CfgNode
from helpers import default_cfg, make_dense_batch
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture(scope="session")
def make_batch() -> Callable:
    return make_dense_batch


@pytest.fixture
def cfg() -> CfgNode:
    return default_cfg()


def _loss_of_logit(x_t: Tensor, name: str, gamma: float, beta: float) -> Tensor:
    """The paper's definitions: section 3 and appendix A."""
    if name == "focal_star":
        return -F.logsigmoid(gamma * x_t + beta) / gamma
    return -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))


def _reference_sum(
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    formula: tuple[str, float, float],
    positive_weight: float | Tensor = 1.0,
    negative_weight: float | Tensor = 1.0,
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
