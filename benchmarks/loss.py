"""The focal loss, forward and backward, beside its peers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from fvcore.nn import sigmoid_focal_loss, sigmoid_focal_loss_jit
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from focal_retina.losses import FocalLoss
from focal_retina.modeling.anchor_labeling import AnchorLabeler

from .inputs import Size, make_anchors, make_batch
from .timing import COPY, Case

PAPER = {"alpha": 0.25, "gamma": 2.0}
NORMALIZER = 100.0  # of a model's loss


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours, on logits in bf16 too (also where bf16 is emulated: the loss computes in fp32, and
    reads half the bytes), and the peers."""
    peers = {
        "Detectron2 (fvcore, jit)": partial(_one_hot_loss, sigmoid_focal_loss_jit),
        "fvcore, eager": partial(_one_hot_loss, sigmoid_focal_loss),
        "torchvision": partial(_one_hot_loss, torchvision_focal_loss),
        "plain form of ours": _our_loss("plain", device),
    }
    for size in sizes:
        logits, labels = make_inputs(size, device)
        bf16_logits = [x.detach().bfloat16().requires_grad_() for x in logits]
        pairs = [(torch.zeros_like(x), x.detach()) for x in logits]
        ours = _our_loss("auto", device)
        candidates = {
            "ours": partial(_step, ours, logits, labels),
            "ours, bf16 logits": partial(_step, ours, bf16_logits, labels),
            COPY: lambda pairs=pairs: [copy.copy_(x) for copy, x in pairs],
            "copy into new memory": lambda logits=logits: [x.detach().clone() for x in logits],
        }
        candidates |= {name: partial(_step, loss, logits, labels) for name, loss in peers.items()}
        yield size.title, candidates


def make_inputs(size: Size, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Logits (N, R_l, K) of an early iteration, and labels (N, R_l), by levels."""
    generator = torch.Generator().manual_seed(0)
    anchors = make_anchors((size.height, size.width), device)
    gt = [x["instances"].to(device) for x in make_batch(size)]
    labels, _ = AnchorLabeler(num_classes=size.classes)(anchors, gt)
    counts = [len(level) for level in anchors]
    logits = [
        torch.randn(size.images, r, size.classes, generator=generator).sub_(4).to(device)
        for r in counts
    ]
    return [x.requires_grad_() for x in logits], list(labels.split(counts, dim=1))


def _step(loss: Callable, logits: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(loss(logits, labels), logits)


def _our_loss(kernel: str, device: torch.device) -> Callable[..., Tensor]:
    loss, normalizer = FocalLoss(**PAPER, kernel=kernel), torch.tensor(NORMALIZER, device=device)
    return lambda logits, labels: loss(logits, labels, normalizer)[0]


def _one_hot_loss(focal_loss: Callable, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
    """What Detectron2's ``RetinaNet.losses`` does for classification, with any focal loss: targets
    and valid logits are made anew, because the labels are new in every iteration."""
    gt_labels = torch.cat(labels, dim=1)
    valid = gt_labels >= 0
    target = F.one_hot(gt_labels[valid], num_classes=logits[0].shape[2] + 1)[:, :-1]
    kept = torch.cat(logits, dim=1)[valid]
    return focal_loss(kept, target.to(kept.dtype), **PAPER, reduction="sum") / NORMALIZER
