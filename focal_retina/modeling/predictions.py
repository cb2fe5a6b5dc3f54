"""What the network says of a batch's anchors: N images, R_l anchors of level l, R of all levels, K
classes, P positive anchors of the batch.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from detectron2.structures import Boxes
from torch import Tensor


class DensePredictions(NamedTuple):
    """What the network predicts for every anchor."""

    anchors: list[Boxes]  # per level, R_l boxes in pixels, the same for all images
    logits: list[Tensor]  # per level, (N, R_l, K)
    deltas: list[Tensor]  # per level, (N, R_l, 4)


class LabeledPredictions(NamedTuple):
    """What a training step needs of the network, for N images."""

    anchors: list[Boxes]  # per level, R_l boxes in pixels
    logits: list[Tensor]  # per level, (N, R_l, K)
    labels: Tensor  # int64 (N, R), see AnchorLabeler
    image_idxs: Tensor  # int64 (P,): the image of each positive
    anchor_idxs: Tensor  # int64 (P,): its anchor, counted over the levels
    deltas: Tensor  # (P, 4)
    gt_boxes: Tensor  # (P, 4), XYXY in pixels: its object

    @classmethod
    def cat(cls, batches: Sequence["LabeledPredictions"]) -> "LabeledPredictions":
        """Those of all images, of the predictions for batches of one size of image."""
        starts = accumulate((len(x.labels) for x in batches[:-1]), initial=0)
        batches = [
            x._replace(image_idxs=x.image_idxs + start)
            for x, start in zip(batches, starts, strict=True)
        ]
        anchors, logits, *tensors = zip(*batches, strict=True)
        levels = zip(*logits, strict=True)
        return cls(anchors[0], list(map(torch.cat, levels)), *map(torch.cat, tensors))

    def levels(self) -> Iterator["LabeledPredictions"]:
        """The same of each level alone."""
        start = 0
        for anchors, logits in zip(self.anchors, self.logits, strict=True):
            end = start + len(anchors)
            its = (self.anchor_idxs >= start) & (self.anchor_idxs < end)
            yield LabeledPredictions(
                [anchors],
                [logits],
                self.labels[:, start:end],
                self.image_idxs[its],
                self.anchor_idxs[its] - start,
                self.deltas[its],
                self.gt_boxes[its],
            )
            start = end
