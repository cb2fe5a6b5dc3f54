"""From dense predictions to detections: threshold, top-k per level, decode, per-class NMS.

Shapes: N images, R_l anchors of level l, K classes, T candidates kept.
"""

import math
from typing import Any

import torch
from detectron2.layers import batched_nms, nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor


class DensePostprocessor:
    """Detectron2's RetinaNet inference, on logits: the threshold first applies to them, with a
    margin, so that the sigmoid and the exact comparison run on few candidates.

    ``torch.export`` and ``torch.jit.trace`` can follow :meth:`candidates` and :meth:`nms`: no
    number of boxes becomes a Python number, which they would freeze.
    """

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
    ):
        """
        Args:
            box2box_transform: decodes deltas.
            score_thresh: a detection's score is higher (paper section 4.1: .05).
            topk_candidates: at most so many boxes per level are decoded.
            nms_thresh: of two boxes of one class with a higher IoU, the lower score is dropped.
            max_detections: at most so many detections per image.
        """
        self.box2box_transform = box2box_transform
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        probability = torch.tensor(score_thresh, dtype=torch.float64, device="cpu")
        self._logit_thresh = probability.logit(eps=0.0).item()
        if math.isfinite(self._logit_thresh):
            # Room for its rounding to the dtype of the logits, which is bf16's 8 bits at worst.
            self._logit_thresh -= 1e-2 * (1 + abs(self._logit_thresh))

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
        detections = []
        for i, image_size in enumerate(image_sizes):
            of_image = [x[i] for x in logits], [x[i] for x in deltas]
            detections.append(self.select(*self.candidates(anchors, *of_image), image_size))
        return detections

    def candidates(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One image's boxes (T, 4), scores (T,) and classes (T,) before NMS, from its logits
        (R_l, K) and deltas (R_l, 4) per level."""
        levels = map(self._level_candidates, anchors, logits, deltas)
        boxes, scores, classes = map(torch.cat, zip(*levels, strict=True))
        return boxes, scores, classes

    def select(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """The candidates that :meth:`nms` keeps."""
        keep = self.nms(boxes, scores, classes)
        fields = {"scores": scores[keep], "pred_classes": classes[keep]}
        return Instances(image_size, pred_boxes=Boxes(boxes[keep]), **fields)

    def nms(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """Indices of the best candidates that survive per-class NMS, the highest score first."""
        if torch.compiler.is_exporting():
            return _exportable_nms(boxes, scores, classes, self.nms_thresh, self.max_detections)
        return batched_nms(boxes, scores, classes, self.nms_thresh)[: self.max_detections]

    def _level_candidates(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        anchor_idxs, class_idxs = torch.nonzero(logits > self._logit_thresh, as_tuple=True)
        scores = logits[anchor_idxs, class_idxs].float().sigmoid()
        above = torch.nonzero(scores > self.score_thresh)[:, 0]
        anchor_idxs, class_idxs, scores = anchor_idxs[above], class_idxs[above], scores[above]

        scores, top = scores.topk(_at_most(scores.shape[0], self.topk_candidates))
        anchor_idxs, class_idxs = anchor_idxs[top], class_idxs[top]
        own_deltas, own_anchors = deltas[anchor_idxs], anchors.tensor[anchor_idxs]
        return self.box2box_transform.apply_deltas(own_deltas, own_anchors), scores, class_idxs


def _at_most(size: Any, limit: int) -> Any:
    """The minimum. A size is a tensor in torch.jit.trace, and a SymInt in torch.export."""
    return size.clamp(max=limit) if isinstance(size, Tensor) else torch.sym_min(size, limit)


def _exportable_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_detections: int
) -> Tensor:
    """``batched_nms`` in its one-call form: each class is moved to a place of its own.

    For many boxes on a CPU ``batched_nms`` calls NMS class by class instead, which torch.export
    can't follow. Rounding can differ where an IoU is within some 1e-4 of the threshold.
    """
    # torchvision tells torch.export that NMS leaves at least two boxes. These two are always left:
    # without area they overlap nothing. With the lowest scores they come last.
    boxes = torch.cat((boxes, boxes.new_zeros(2, 4)))
    scores = torch.cat((scores, scores.new_full((2,), -1)))
    classes = torch.cat((classes, classes.new_zeros(2)))
    moved = boxes + (classes * (boxes.max() + 1))[:, None]
    keep = nms(moved, scores, iou_threshold)
    num_kept = torch.sym_min(keep.shape[0] - 2, max_detections)
    torch._check(num_kept <= keep.shape[0])  # PyTorch 2.8 does not see it by itself
    return keep[:num_kept]
