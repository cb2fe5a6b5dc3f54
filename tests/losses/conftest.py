"""Random batches, configs, and an independent definition of the losses."""

from collections.abc import Callable, Sequence

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor
from torch.nn import functional as F

from focal_retina.config import add_focal_retina_config


@pytest.fixture(scope="session")
def make_batch() -> Callable:
    def make(
        *,
        seed: int = 0,
        num_images: int = 2,
        level_sizes: Sequence[int] = (30, 8, 1),
        num_classes: int = 5,
        dtype: torch.dtype = torch.float32,
        scale: float = 3.0,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Leaf logits and labels of all kinds (ignored, each class, background) for each level."""
        generator = torch.Generator().manual_seed(seed)
        logits, labels = [], []
        for size in level_sizes:
            x = scale * torch.randn(num_images, size, num_classes, generator=generator)
            logits.append(x.to(dtype).requires_grad_())
            y = torch.randint(-1, num_classes + 1, (num_images, size), generator=generator)
            labels.append(y)
        return logits, labels

    return make


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    return cfg


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
