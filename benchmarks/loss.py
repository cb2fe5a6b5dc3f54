"""The focal loss, forward and backward, beside its peers. R anchors of all levels, K classes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from fvcore.nn import sigmoid_focal_loss, sigmoid_focal_loss_jit
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from focal_retina.losses import FocalLoss
from focal_retina.modeling.anchor_labeling import AnchorLabeler

from .inputs import OBJECTS_PER_IMAGE, Size, make_anchors, make_gt
from .timing import COPY, Candidate, Case

ALPHA, GAMMA = 0.25, 2.0
# A model's loss is divided by the normalizer before backward.
NORMALIZER = 100.0

SIZES = (
    Size(2, 800, 1344, 80),
    Size(1, 480, 640, 80),
    Size(2, 800, 1344, 1),
    Size(1, 480, 640, 1203),  # LVIS
)
# Images alone, then anchors alone, then classes alone.
SCALING = (
    *(Size(n, 800, 1344, 80) for n in (1, 2, 4)),
    *(Size(1, h, w, 80) for h, w in ((200, 336), (400, 672), (800, 1344), (1600, 2688))),
    *(Size(1, 400, 672, k) for k in (1, 20, 80, 365, 1203)),
)

Loss = Callable[[list[Tensor], list[Tensor]], Tensor]


def cases(device: torch.device, sizes: Sequence[Size], peers: bool = True) -> Iterator[Case]:
    """Our loss and the peers' at each size.

    The peers need a one-hot target of every anchor and logits without the ignored anchors. Both are
    made inside the measured call, as in Detectron2's ``RetinaNet.losses``, because the labels are
    new in every iteration.
    """
    for size in sizes:
        inputs = make_inputs(size, device)
        yield size.title, our_candidates(*inputs) | (peer_candidates(*inputs) if peers else {})


def make_inputs(size: Size, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of an early iteration, and the labels of images with 8 objects each, by levels."""
    generator = torch.Generator().manual_seed(0)
    anchors = make_anchors((size.height, size.width), device)
    gt = [
        make_gt(OBJECTS_PER_IMAGE, (size.height, size.width), size.classes, seed=image).to(device)
        for image in range(size.images)
    ]
    labels, _ = AnchorLabeler(num_classes=size.classes)(anchors, gt)
    level_sizes = [len(level) for level in anchors]
    logits = [
        torch.randn(size.images, r, size.classes, generator=generator).sub_(4).to(device)
        for r in level_sizes
    ]
    return [x.requires_grad_() for x in logits], list(labels.split(level_sizes, dim=1))


def our_candidates(logits: list[Tensor], labels: list[Tensor]) -> dict[str, Candidate]:
    # Also where bf16 is emulated: the loss computes in fp32, and reads half the bytes.
    bf16_logits = [x.detach().bfloat16().requires_grad_() for x in logits]
    copies = [torch.zeros_like(x) for x in logits]
    return {
        "ours": _step(_our_loss("auto"), logits, labels),
        "ours, bf16 logits": _step(_our_loss("auto"), bf16_logits, labels),
        COPY: lambda: [copy.copy_(x.detach()) for copy, x in zip(copies, logits, strict=True)],
        "copy into new memory": lambda: [x.detach().clone() for x in logits],
    }


def peer_candidates(logits: list[Tensor], labels: list[Tensor]) -> dict[str, Candidate]:
    losses = {
        "Detectron2 (fvcore, jit)": _one_hot_loss(sigmoid_focal_loss_jit),
        "fvcore, eager": _one_hot_loss(sigmoid_focal_loss),
        "torchvision": _one_hot_loss(torchvision_focal_loss),
        "ours, plain form": _our_loss("plain"),
    }
    return {name: _step(loss, logits, labels) for name, loss in losses.items()}


def _step(loss: Loss, logits: list[Tensor], labels: list[Tensor]) -> Candidate:
    """Forward and backward."""
    return lambda: torch.autograd.grad(loss(logits, labels) / NORMALIZER, logits)


def _our_loss(kernel: str) -> Loss:
    module = FocalLoss(alpha=ALPHA, gamma=GAMMA, kernel=kernel)
    return lambda logits, labels: module(logits, labels)[0]


def _one_hot_loss(focal_loss: Callable[..., Tensor]) -> Loss:
    """What Detectron2's ``RetinaNet.losses`` does for classification, with any focal loss."""

    def loss(logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        gt_labels = torch.cat(labels, dim=1)
        valid = gt_labels >= 0
        target = F.one_hot(gt_labels[valid], num_classes=logits[0].shape[2] + 1)[:, :-1]
        return focal_loss(
            torch.cat(logits, dim=1)[valid],
            target.to(logits[0].dtype),
            alpha=ALPHA,
            gamma=GAMMA,
            reduction="sum",
        )

    return loss
