"""Configs, and an independent definition of the losses."""

import pytest
import torch
from helpers import default_cfg
from torch.nn import functional as F


@pytest.fixture
def cfg():
    return default_cfg()


def loss_of_logit(x_t, name, gamma, beta):
    """The paper's definitions: section 3 and appendix A."""
    if name == "focal_star":
        return -F.logsigmoid(gamma * x_t + beta) / gamma
    return -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))


@pytest.fixture(scope="session")
def reference_sum():
    """In float64 and with ordinary autograd, one-hot targets and masks."""

    def compute(logits, labels, formula, positive_weight=1.0, negative_weight=1.0):
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(logits, labels, strict=True):
            num_classes = x.shape[2]
            target = F.one_hot(y.clamp(min=0), num_classes + 1)[..., :num_classes][y >= 0].bool()
            x = x.double()[y >= 0]
            positive = positive_weight * loss_of_logit(x, *formula)
            negative = negative_weight * loss_of_logit(-x, *formula)
            total = total + positive[target].sum() + negative[~target].sum()
        return total

    return compute
