"""From dense predictions to detections: threshold, top-k per level, decode, per-class NMS.

Shapes: N images, R_l anchors of level l, K classes, T candidates kept, D detections.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.layers import batched_nms, nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

Candidates = tuple[Tensor, Tensor, Tensor]  # boxes (T, 4), scores (T,) and classes (T,)
Best = Callable[..., Tensor]  # _best or _best_of_each_image


@dataclass(kw_only=True, eq=False)
class DensePostprocessor:
    """Detectron2's RetinaNet inference, on logits: the threshold first applies to them, with a
    margin, so that the sigmoid and the exact comparison run on few candidates.

    ``torch.jit.trace`` can follow a call, and ``torch.export`` :meth:`detect_in_batch`: no number
    of boxes becomes a Python number, which they would freeze.
    """

    box2box_transform: Box2BoxTransform  # decodes deltas
    score_thresh: float = 0.05  # a detection's score is higher (paper section 4.1: .05)
    topk_candidates: int = 1000  # at most so many boxes per level are decoded
    nms_thresh: float = 0.5  # of two boxes of one class with a higher IoU, the lower score goes
    max_detections: int = 100  # at most so many detections per image
    class_agnostic_nms: bool = False  # it goes where the boxes are of different classes, too

    @property
    def _logit_thresh(self) -> float:
        """That of ``score_thresh``, which may be set later, and room for its rounding to the dtype
        of the logits, which is bf16's 8 bits at worst."""
        if not 0 < self.score_thresh < 1:
            return math.copysign(math.inf, self.score_thresh - 0.5)
        logit = math.log(self.score_thresh / (1 - self.score_thresh))
        return logit - 1e-2 * (1 + abs(logit))

    def __call__(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Per image, Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, the highest
        score first; from R_l boxes in pixels, logits (N, R_l, K) and deltas (N, R_l, 4) per level,
        and (height, width) of each image before padding."""
        of_each = self.candidates(anchors, logits, deltas)
        return [self.select(*x, size) for x, size in zip(of_each, image_sizes, strict=True)]

    def candidates(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor]
    ) -> Iterator[Candidates]:
        """Of each image what goes into NMS, from what :meth:`__call__` gets."""
        for i in range(len(logits[0])):
            of_image = [x[i : i + 1] for x in logits], [x[i : i + 1] for x in deltas]
            boxes, scores, classes, _ = self._candidates(anchors, *of_image, _best)
            yield boxes, scores, classes

    def select(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """The best of one image's candidates that survive NMS, the highest score first."""
        if self.class_agnostic_nms:
            keep = nms(boxes, scores, self.nms_thresh)
        else:
            keep = batched_nms(boxes, scores, classes, self.nms_thresh)
        keep = keep[: self.max_detections]
        fields = {"scores": scores[keep], "pred_classes": classes[keep]}
        return Instances(image_size, pred_boxes=Boxes(boxes[keep]), **fields)

    def detect_in_batch(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:meth:`__call__` for graphs of any number of images: boxes (D, 4), scores (D,), classes
        (D,) and images (D,), one image after the other."""
        num_images = logits[0].shape[0]
        best = partial(_best_of_each_image, num_images=num_images)
        boxes, scores, classes, images = self._candidates(anchors, logits, deltas, best)
        groups = torch.zeros_like(classes) if self.class_agnostic_nms else classes
        keep = self._exportable_nms(boxes, scores, groups, images, num_images)
        keep = keep[_first_of_each_image(images[keep], num_images, self.max_detections)]
        return boxes[keep], scores[keep], classes[keep], images[keep]

    def _exportable_nms(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, images: Tensor, num_images: Any
    ) -> Tensor:
        """``batched_nms`` in its one-call form: each class is moved to a place of its own, to the
        right of the one before, and each image below the one before.

        For many boxes on a CPU ``batched_nms`` calls NMS class by class instead, which torch.export
        can't follow. Rounding can differ where an IoU is within some 1e-4 of the threshold.
        """
        # torchvision tells torch.export that NMS leaves at least two boxes. These two are always
        # left: without area they overlap nothing. With the lowest scores they come last.
        boxes = torch.cat((boxes, boxes.new_zeros(2, 4)))
        scores = torch.cat((scores, scores.new_full((2,), -1)))
        classes, images = (torch.cat((x, x.new_zeros(2))) for x in (classes, images))
        is_own = _is_of_image(images, num_images)
        largest = torch.where(is_own, boxes.amax(dim=1), 0).amax(dim=1)  # in each image
        right, down = classes * (largest[images] + 1), images * (boxes.max() - boxes.min() + 1)
        shift = torch.stack((right, down), dim=1)
        keep = nms(boxes + shift.repeat(1, 2), scores, self.nms_thresh)
        num_kept = keep.shape[0] - 2
        torch._check(num_kept <= keep.shape[0])  # PyTorch 2.8 does not see it by itself
        return keep[:num_kept]

    def _candidates(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor], best: Best
    ) -> tuple[Tensor, ...]:
        """Boxes, scores, classes and images; ``best`` chooses from each level's of each image."""
        levels = zip(anchors, logits, deltas, strict=True)
        of_levels = (self._level_candidates(*x, best) for x in levels)
        return tuple(map(torch.cat, zip(*of_levels, strict=True)))

    def _level_candidates(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor, best: Best
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = torch.nonzero(logits > self._logit_thresh, as_tuple=True)
        scores = logits[found].float().sigmoid()
        above = torch.nonzero(scores > self.score_thresh)[:, 0]
        images, anchor_idxs, class_idxs = (x[above] for x in found)
        scores = scores[above]

        top = best(scores, images, limit=self.topk_candidates)
        images, anchor_idxs, class_idxs = images[top], anchor_idxs[top], class_idxs[top]
        own_deltas, own_anchors = deltas[images, anchor_idxs], anchors.tensor[anchor_idxs]
        boxes = self.box2box_transform.apply_deltas(own_deltas, own_anchors)
        return boxes, scores[top], class_idxs, images


def _best(scores: Tensor, _: Tensor, *, limit: int) -> Tensor:
    """Indices of one image's highest scores, the highest first."""
    count: Any = scores.shape[0]  # a tensor in torch.jit.trace
    count = count.clamp(max=limit) if isinstance(count, Tensor) else min(count, limit)
    return scores.topk(count).indices


def _best_of_each_image(scores: Tensor, images: Tensor, *, limit: int, num_images: Any) -> Tensor:
    order = scores.argsort(descending=True)
    return order[_first_of_each_image(images[order], num_images, limit)]


def _first_of_each_image(images: Tensor, num_images: Any, limit: int) -> Tensor:
    """Indices of the first ``limit`` entries of each image, one image after the other."""
    is_own = _is_of_image(images, num_images)
    return torch.nonzero(is_own & (is_own.cumsum(1, dtype=torch.int32) <= limit))[:, 1]


def _is_of_image(images: Tensor, num_images: Any) -> Tensor:
    return images == torch.arange(num_images, device=images.device)[:, None]
