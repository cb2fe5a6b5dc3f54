"""Online hard example mining (Shrivastava et al., CVPR 2016), as in the paper's Table 1d."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from .alpha import Alpha
from .dense import CLS_LOSS_REGISTRY, CrossEntropy, dense_loss
from .ops import Levels


@CLS_LOSS_REGISTRY.register()
class OHEM(nn.Module):
    """Cross-entropy of the B hardest anchors of each image after NMS; all others are left out.

    An anchor's score is its loss, summed over classes. Greedy NMS drops an anchor that overlaps one
    of a higher score. The B highest survivors are trained on, and their loss is divided by their
    number, as in Fast R-CNN. With the 1:3 rule, the hardest positives, at most B // 4, are trained
    on, and three of the hardest negatives for each of them. What the paper leaves open:

    * The NMS runs on what is classified, as in Fast R-CNN: there RoIs, here anchors, not the boxes
      regressed from them.
    * B counts per image, as in the authors' Detectron: the rest of the batch changes nothing.
    * Under the 1:3 rule, positives suppress only positives, and negatives only negatives: a harder
      background anchor should not remove a positive beside it.
    * α weighs the score as it weighs the loss (see :class:`CrossEntropy`).

    The selection depends on the data, so it waits for a CUDA device a few times per image.
    """

    needs_anchors = True

    def __init__(
        self,
        *,
        batch_size: int,
        nms_thresh: float,
        one_to_three: bool = False,
        alpha: Alpha = -1.0,
        kernel: str = "auto",
    ):
        """batch_size: B, per image; nms_thresh: of two anchors of a higher IoU, the one with the
        lower loss is dropped; one_to_three: hold positives to negatives at 1:3; alpha, kernel: see
        :class:`DenseLoss`."""
        if batch_size < (4 if one_to_three else 1):
            raise ValueError(f"batch_size is {batch_size}; OHEM needs 1, and 4 for one_to_three")
        if not 0 <= nms_thresh <= 1:
            raise ValueError(f"nms_thresh is {nms_thresh}: an IoU is in [0, 1]")
        super().__init__()
        self.cross_entropy = CrossEntropy(alpha=alpha, kernel=kernel)
        self.batch_size = batch_size
        self.nms_thresh = nms_thresh
        self.one_to_three = one_to_three

    @classmethod
    def from_config(cls, cfg: Any, class_counts: Sequence[int] | None = None) -> dict[str, Any]:
        node = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.OHEM
        return {
            **CrossEntropy.from_config(cfg, class_counts),
            "batch_size": node.BATCH_SIZE,
            "nms_thresh": node.NMS_THRESH,
            "one_to_three": node.ONE_TO_THREE,
        }

    def forward(self, logits: Levels, labels: Levels, anchors: Levels) -> tuple[Tensor, Tensor]:
        """See :mod:`focal_retina.losses`: the sum over the mined anchors, and their count."""
        self.cross_entropy.check_inputs(logits, labels)
        if [(y.shape[1], 4) for y in labels] != [tuple(a.shape) for a in anchors]:
            raise ValueError(
                "each level needs anchors (R_l, 4) and labels (N, R_l); got "
                f"{[tuple(a.shape) for a in anchors]} and {[tuple(y.shape) for y in labels]}"
            )
        mined = self.mine(logits, labels, anchors)
        total, _ = self.cross_entropy(logits, mined)
        return total, torch.stack([(y >= 0).sum() for y in mined]).sum()

    @torch.no_grad()
    def mine(self, logits: Levels, labels: Levels, anchors: Levels) -> Levels:
        """Labels in which every anchor that is not trained on is ignored."""
        ce, num_classes = self.cross_entropy, logits[0].shape[-1]
        boxes = torch.cat(anchors)
        all_labels = torch.cat(labels, dim=1)
        mined = torch.full_like(all_labels, -1)
        for i, image_labels in enumerate(all_labels):
            by_level = [
                dense_loss(ce.elementwise, x[i], y[i], ce.weights).sum(dim=-1)
                for x, y in zip(logits, labels, strict=True)
            ]
            # Ties in the order of the anchors, so that the choice is deterministic.
            order = torch.cat(by_level).argsort(descending=True, stable=True)
            order = order[image_labels[order] >= 0]
            hardest = order[self._select(boxes[order], image_labels[order] < num_classes)]
            mined[i, hardest] = image_labels[hardest]
        return list(mined.split([len(x) for x in anchors], dim=1))

    def _select(self, boxes: Tensor, is_positive: Tensor) -> Tensor:
        """Indices of the anchors to train on; ``boxes`` (R, 4) are sorted by falling loss."""
        if not self.one_to_three:
            return nms_survivors(boxes, self.nms_thresh, self.batch_size)
        positives, negatives = is_positive.nonzero()[:, 0], (~is_positive).nonzero()[:, 0]
        hardest = nms_survivors(boxes[positives], self.nms_thresh, self.batch_size // 4)
        positives = positives[hardest]
        hardest = nms_survivors(boxes[negatives], self.nms_thresh, 3 * len(positives))
        return torch.cat([positives, negatives[hardest]])


def nms_survivors(boxes: Tensor, threshold: float, most: int) -> Tensor:
    """Indices of the first ``most`` boxes (R, 4), the highest score first, that survive greedy NMS.
    Only the boxes before a box decide whether it does, so that the NMS runs on the first boxes
    alone; their number doubles until it suffices."""
    num_boxes = 4 * most
    while True:
        first = boxes[:num_boxes].float()
        falling_scores = -torch.arange(len(first), dtype=torch.float32, device=boxes.device)
        survivors = nms(first, falling_scores, threshold)
        if len(survivors) >= most or num_boxes >= len(boxes):
            return survivors[:most]
        num_boxes *= 2
