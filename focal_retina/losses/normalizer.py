"""What the sums of the losses are divided by: the number of anchors assigned to objects.

The paper (section 4.1) divides by that number. Which anchors it is counted over is the mode: this
batch's ("batch"), a moving average over iterations ("ema", Detectron2's), each image's own
("image"). N images on this worker, W workers.

DistributedDataParallel averages gradients over workers. So a count is added up over them and
divided by W: then W workers of N images train as one worker of W·N images does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """W, the size of the default process group; 1 where there is none."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_distributed else 1


def sum_over_workers(value: Tensor) -> Tensor:
    """Add up ``value`` over all workers, each of which must call; nobody waits for a device."""
    if world_size() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


class BatchNormalizer(nn.Module):
    """The positive anchors of this iteration's batch, over all workers; at least 1."""

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """
        Args:
            num_positives: (N,), the positive anchors of each image.

        Returns:
            0-dim fp32: divide the loss of this worker's images by it.
        """
        return (_total_positives(num_positives) / world_size()).float()


class EmaNormalizer(nn.Module):
    """Detectron2's moving average of the batches' positive anchors, to the same digits.

    In training each call first updates the average; in evaluation it stays as it is. The state dict
    has it, so that a resumed run goes on where it stopped, but only once it differs from its
    initial value: a new model has exactly the keys of Detectron2's RetinaNet.

    The average is that of the whole batch, so that a run may go on with another number of workers.
    In Detectron2 each worker averages over its own images: the first few dozen iterations differ.
    """

    ema: Tensor

    def __init__(self, *, initial: float = 100.0, momentum: float = 0.9):
        """
        Args:
            initial: the average before the first iteration, in anchors of the whole batch.
            momentum: how much of the old average stays at each iteration, in [0, 1).
        """
        super().__init__()
        if not 0 < initial < math.inf:
            raise ValueError(f"initial is {initial}: a normalizer is positive and finite")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, outside [0, 1)")
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
        if self.ema.item() == self.initial:
            del destination[prefix + "ema"]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        initial = torch.full_like(self.ema, self.initial)
        super()._load_from_state_dict({prefix + "ema": initial, **state_dict}, prefix, *args)


class ImageNormalizer(nn.Module):
    """Each image's own positive anchors, at least 1; the losses of the images are averaged.

    Nothing is exchanged between workers: with as many images on each, the average of their averages
    is that of all images.
    """

    @torch.no_grad()
    def forward(self, num_positives: Tensor) -> Tensor:
        """
        Args:
            num_positives: (N,), the positive anchors of each image.

        Returns:
            (N,) fp32: divide the loss of image i by entry i (N is in it), and add them up.
        """
        return (num_positives.clamp(min=1) * len(num_positives)).float()


def build_loss_normalizer(cfg: Any) -> nn.Module:
    """Build what ``MODEL.FOCAL_RETINA.NORMALIZER`` describes.

    Raises:
        ValueError: an unknown mode, or values that the normalizer refuses.
    """
    node = cfg.MODEL.FOCAL_RETINA.NORMALIZER
    normalizers: dict[str, Callable[[], nn.Module]] = {
        "batch": BatchNormalizer,
        "ema": lambda: EmaNormalizer(initial=node.INITIAL, momentum=node.MOMENTUM),
        "image": ImageNormalizer,
    }
    if node.MODE not in normalizers:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.NORMALIZER.MODE is {node.MODE!r}: "
            f"choose one of {', '.join(normalizers)}"
        )
    return normalizers[node.MODE]()


def _total_positives(num_positives: Tensor) -> Tensor:
    """The whole batch's positive anchors, at least 1, as 0-dim fp64."""
    return sum_over_workers(num_positives.sum().double()).clamp(min=1)


def normalized_loss(
    loss: nn.Module,
    logits: list[Tensor],
    labels: list[Tensor],
    normalizer: Tensor,
    anchors: list[Tensor],
) -> Tensor:
    """Call a loss (contract: :mod:`focal_retina.losses`) and divide; returns a 0-dim tensor.

    ``normalizer`` is what a normalizer returned: 0-dim, or (N,) for dividing image by image.
    """
    extra = {"anchors": anchors} if getattr(loss, "needs_anchors", False) else {}
    if normalizer.dim() == 0:
        total, count = loss(logits, labels, **extra)
        return total / (normalizer if count is None else count)

    quotients = []
    for i, own in enumerate(normalizer):
        total, count = loss([x[i : i + 1] for x in logits], [y[i : i + 1] for y in labels], **extra)
        quotients.append(total / (own if count is None else count * len(normalizer)))
    return torch.stack(quotients).sum()
