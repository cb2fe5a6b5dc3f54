"""The divisor of the losses' sums: the number of anchors assigned to objects (section 4.1).

The mode says which anchors count: this batch's ("batch"), a moving average over iterations
("ema", Detectron2's), or each image's own ("image"). N images on this worker, W workers.

DistributedDataParallel averages gradients over workers. So a count is summed over the workers and
divided by W: then W workers of N images train as one worker of W·N images does.
"""

import math
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .ops import Levels


def world_size() -> int:
    """W; 1 without a process group."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_distributed else 1


class BatchNormalizer(nn.Module):
    """The positive anchors of this iteration's batch, over all workers; at least 1."""

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """The positive anchors of each image, (N,), to the divisor of this worker's losses, 0-dim
        fp32."""
        return (_total_positives(num_positives) / world_size()).float()


class EmaNormalizer(nn.Module):
    """Detectron2's moving average of the batches' positive anchors, to the same digits.

    In training each call first updates the average. The state dict has it for exact resume, but
    only once it differs from its initial value: a new model has exactly the keys of Detectron2's.
    It averages over all workers, whose number may change; in Detectron2 each has its own average.
    """

    ema: Tensor

    def __init__(self, *, initial: float = 100.0, momentum: float = 0.9):
        """initial: the average before the first iteration, in anchors of the whole batch;
        momentum: how much of the old average stays at each iteration."""
        super().__init__()
        if not (0 < initial < math.inf and 0 <= momentum < 1):
            raise ValueError(
                f"initial is {initial} and momentum {momentum}: a normalizer is positive and "
                "finite, a momentum in [0, 1)"
            )
        self.initial, self.momentum = float(initial), float(momentum)
        # fp64, as are the Python floats that Detectron2 keeps
        self.register_buffer("ema", torch.tensor(self.initial, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """See :class:`BatchNormalizer`."""
        if self.training:
            total = _total_positives(num_positives)
            # In place, so that a captured CUDA graph updates it, too
            self.ema.copy_(self.ema * self.momentum + total * (1 - self.momentum))
        return (self.ema / world_size()).float()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.ema.is_meta or self.ema.item() == self.initial:
            del destination[prefix + "ema"]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        initial = torch.full_like(self.ema, self.initial)
        super()._load_from_state_dict({prefix + "ema": initial, **state_dict}, prefix, *args)


class ImageNormalizer(nn.Module):
    """Each image's own positive anchors, at least 1; the losses of the images are averaged. Workers
    exchange nothing: each has N images, so the mean of their means is that of all images."""

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """As of :class:`BatchNormalizer`, but (N,): the sum of the losses of image i is divided by
        entry i, which includes N, and the quotients are summed."""
        return (num_positives.clamp(min=1) * len(num_positives)).float()


def build_loss_normalizer(cfg: Any) -> nn.Module:
    """Build what ``MODEL.FOCAL_RETINA.NORMALIZER`` describes; ValueError for senseless values."""
    node = cfg.MODEL.FOCAL_RETINA.NORMALIZER
    ema = partial(EmaNormalizer, initial=node.INITIAL, momentum=node.MOMENTUM)
    modes: dict[str, Any] = {"batch": BatchNormalizer, "ema": ema, "image": ImageNormalizer}
    if node.MODE not in modes:
        known = ", ".join(modes)
        raise ValueError(f"MODEL.FOCAL_RETINA.NORMALIZER.MODE is {node.MODE!r}; it can be {known}")
    return modes[node.MODE]()


def _total_positives(num_positives: Tensor) -> Tensor:
    """The whole batch's positive anchors, at least 1, as 0-dim fp64. Each worker must call; none
    waits for a device."""
    total = num_positives.sum().double()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.clamp(min=1)


def call_loss(
    loss: nn.Module, logits: Levels, labels: Levels, normalizer: Tensor, anchors: Levels
) -> tuple[Tensor, Tensor | None]:
    """What a loss returns: a sum, and a count or None."""
    given = {"needs_anchors": ("anchors", anchors), "takes_normalizer": ("normalizer", normalizer)}
    return loss(logits, labels, **dict(x for key, x in given.items() if getattr(loss, key, False)))


def normalized_loss(
    loss: nn.Module, logits: Levels, labels: Levels, normalizer: Tensor, anchors: Levels
) -> Tensor:
    """Call a loss and divide by what a normalizer returned, 0-dim, or (N,) image by image; returns
    a 0-dim tensor. The loss's own count of a batch is summed over all workers, which must each
    call."""
    parts = [(logits, labels, normalizer)]
    if normalizer.dim() == 1:
        parts = [
            ([x[i : i + 1] for x in logits], [y[i : i + 1] for y in labels], own)
            for i, own in enumerate(normalizer)
        ]
    quotients = []
    for x, y, divisor in parts:
        total, count = call_loss(loss, x, y, divisor, anchors)
        if count is not None:
            is_own = normalizer.dim() == 1  # an image's, which is no other worker's
            mean = count.clamp(min=1) if is_own else BatchNormalizer()(count)
            total = total / (mean * len(parts))
        elif not getattr(loss, "takes_normalizer", False):
            total = total / divisor
        quotients.append(total)
    return reduce(torch.add, quotients)
