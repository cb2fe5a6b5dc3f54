"""The divisor of the losses' sums: the number of anchors assigned to objects (section 4.1).

The mode says which anchors count: this batch's ("batch"), a moving average over iterations
("ema", Detectron2's), or each image's own ("image"). N images on this worker, W workers.

DistributedDataParallel averages gradients over workers. So a count is summed over the workers and
divided by W: then W workers of N images train as one worker of W·N images does.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """W; 1 without a process group."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_distributed else 1


def sum_over_workers(value: Tensor) -> Tensor:
    """The sum of ``value`` over all workers. Each worker must call; none waits for a device."""
    if world_size() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


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
        if self.ema.item() == self.initial:
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
        raise ValueError(
            f"MODEL.FOCAL_RETINA.NORMALIZER.MODE is {node.MODE!r}; it can be {', '.join(modes)}"
        )
    return modes[node.MODE]()


def _total_positives(num_positives: Tensor) -> Tensor:
    """The whole batch's positive anchors, at least 1, as 0-dim fp64."""
    return sum_over_workers(num_positives.sum().double()).clamp(min=1)


def loss_sums(
    loss: nn.Module,
    logits: list[Tensor],
    labels: list[Tensor],
    anchors: list[Tensor],
    *,
    by_image: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """What a loss (contract: :mod:`focal_retina.losses`) returns for each image, (N,) each, or for
    the batch, (1,); the counts are None where the loss has none."""
    extra = _extra_arguments(loss, anchors, logits[0].new_ones((), dtype=torch.float32))
    images = zip(*(x.split(1 if by_image else len(x)) for x in [*logits, *labels]), strict=True)
    levels = len(logits)
    results = [loss(list(x[:levels]), list(x[levels:]), **extra) for x in images]
    sums = torch.stack([total for total, _ in results])
    counts = [torch.as_tensor(x, device=sums.device) for _, x in results if x is not None]
    return sums, torch.stack(counts) if counts else None


def _extra_arguments(loss: nn.Module, anchors: list[Tensor], normalizer: Tensor) -> dict[str, Any]:
    given = {"needs_anchors": ("anchors", anchors), "takes_normalizer": ("normalizer", normalizer)}
    return dict(item for name, item in given.items() if getattr(loss, name, False))


def divisor_of_counts(counts: Tensor, normalizer: Tensor) -> Tensor:
    """What divides the sums of a loss that counts by itself, as ``normalizer`` divides the others:
    all of them by one number, or image by image."""
    return (ImageNormalizer() if normalizer.dim() else BatchNormalizer())(counts)


class WholeBatch(NamedTuple):
    """What a micro-batch needs to know of all the N images of its iteration, in this worker."""

    num_positives: Tensor  # (N,)
    counts: Tensor | None  # (N,), of a loss that counts by itself
    start: int  # the first image of the micro-batch
    num_anchors: int  # of the micro-batch: R

    def divisors(self, normalizer: nn.Module, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """What divides the micro-batch's sums, of labels of ``shape`` (n, R), and those of a loss
        that counts by itself, 0-dim or (n,) each: as if the iteration's images were one batch."""
        if shape[1] != self.num_anchors:
            raise ValueError("SOLVER.ACCUMULATE needs feature maps of ceil(image size / stride)")
        normalizer.train(self.start == 0)  # a moving average moves once an iteration
        divisor = normalizer(self.num_positives)
        normalizer.train()
        own = None if self.counts is None else divisor_of_counts(self.counts, divisor)
        its = slice(self.start, self.start + shape[0]) if divisor.dim() else ...
        return divisor[its], None if own is None else own[its]


def normalized_loss(
    loss: nn.Module,
    logits: list[Tensor],
    labels: list[Tensor],
    normalizer: Tensor,
    anchors: list[Tensor],
    own_divisor: Tensor | None = None,
) -> Tensor:
    """Call a loss and divide by what a normalizer returned, 0-dim, or (N,) image by image; a loss
    that counts by itself by ``own_divisor``, or its counts in this batch. Returns a 0-dim tensor.
    """
    by_image = normalizer.dim() > 0
    if getattr(loss, "takes_normalizer", False) and not by_image:
        return loss(logits, labels, **_extra_arguments(loss, anchors, normalizer))[0]
    sums, counts = loss_sums(loss, logits, labels, anchors, by_image=by_image)
    if counts is not None:
        normalizer = divisor_of_counts(counts, normalizer) if own_divisor is None else own_divisor
    return (sums / normalizer).sum()
