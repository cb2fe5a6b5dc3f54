"""Random batches and configs for the tests of the losses."""

from collections.abc import Callable, Sequence

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

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
