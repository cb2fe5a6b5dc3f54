"""The detector as a graph: tensors in, tensors out, for any height and width.

Shapes: one image, H and W multiples of the size divisibility, R_l anchors of level l, K classes, D
    detections.
"""

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torchvision.ops import nms

from ..modeling import FocalRetinaNet
from ..modeling.inference import inference_copy


class DenseNetwork(nn.Module):
    """A raw image to its dense predictions and their anchors.

    Batch normalization is folded into the convolutions. The arithmetic is that of
    :class:`FocalRetinaNet` in fp32; what is written anew here are the steps in which its code asks
    for a number of Python where a graph has a variable.
    """

    def __init__(self, model: FocalRetinaNet):
        """
        Args:
            model: stays as it is.

        Raises:
            ValueError: its anchors are not those of ``DefaultAnchorGenerator``.
        """
        super().__init__()
        if not isinstance(model.anchor_generator, DefaultAnchorGenerator):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.NAME {type(model.anchor_generator).__name__} can't be "
                "exported; DefaultAnchorGenerator can"
            )
        self.detector = inference_copy(model)

    @property
    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        levels = self.detector.head_in_features
        return [f"{kind}_{level}" for kind in ("logits", "deltas", "anchors") for level in levels]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (1, 3, H, W) float32, neither normalized nor scaled.

        Returns:
            per level the logits (1, R_l, K), per level the deltas (1, R_l, 4), per level the
            anchors (R_l, 4).
        """
        logits, deltas, anchors = self._predict(image)
        return (*logits, *deltas, *anchors)

    def _predict(self, image: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        detector = self.detector
        features = detector.backbone((image - detector.pixel_mean) / detector.pixel_std)
        features = [features[name] for name in detector.head_in_features]
        logits, deltas = detector.head(features)
        return (
            [permute_to_N_HWA_K(x, detector.num_classes) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            self._anchors(features),
        )

    def _anchors(self, features: list[Tensor]) -> list[Tensor]:
        generator = self.detector.anchor_generator
        levels = zip(features, generator.strides, generator.cell_anchors, strict=True)
        return [_grid_anchors(x, stride, generator.offset, cell) for x, stride, cell in levels]


class DetectionNetwork(DenseNetwork):
    """The same, with decoding and NMS: :class:`DensePostprocessor` as a graph."""

    @property
    def output_names(self) -> list[str]:
        return ["boxes", "scores", "classes"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Returns:
            boxes (D, 4) in pixels of ``image``, not clipped; scores (D,), the highest first;
            classes (D,) int64.
        """
        candidates = [self._level_candidates(*x) for x in zip(*self._predict(image), strict=True)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        postprocessor = self.detector.postprocessor
        keep = _nms_by_class(
            boxes, scores, classes, postprocessor.nms_thresh, postprocessor.max_detections
        )
        return boxes[keep], scores[keep], classes[keep]

    def _level_candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        postprocessor = self.detector.postprocessor
        all_scores = logits[0].float().sigmoid()
        anchor_idxs, class_idxs = torch.nonzero(all_scores > postprocessor.score_thresh).unbind(1)
        scores = all_scores[anchor_idxs, class_idxs]
        scores, top = scores.topk(torch.sym_min(scores.shape[0], postprocessor.topk_candidates))
        anchor_idxs, class_idxs = anchor_idxs[top], class_idxs[top]
        boxes = postprocessor.box2box_transform.apply_deltas(
            deltas[0][anchor_idxs], anchors[anchor_idxs]
        )
        return boxes, scores, class_idxs


def _grid_anchors(feature: Tensor, stride: int, offset: float, cell_anchors: Tensor) -> Tensor:
    """Anchors (H x W x A, 4) of a feature map, as ``DefaultAnchorGenerator`` lays them."""
    centers = [
        (torch.arange(side, device=feature.device) + offset) * stride for side in feature.shape[-2:]
    ]
    y, x = torch.meshgrid(*centers, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
    return (shifts + cell_anchors).reshape(-1, 4)


def _nms_by_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_detections: int
) -> Tensor:
    """``torchvision.ops.batched_nms`` in its one-call form: each class is moved to a place of its
    own. (Above 1,000 boxes on a CPU torchvision calls NMS class by class instead, which rounds
    differently where an IoU is within some 1e-4 of the threshold.)"""
    # torchvision tells torch.export that NMS leaves at least two boxes. These two see to it:
    # without area they overlap nothing, and with the lowest scores they come last.
    boxes = torch.cat((boxes, boxes.new_zeros(2, 4)))
    scores = torch.cat((scores, scores.new_full((2,), -1)))
    classes = torch.cat((classes, classes.new_zeros(2)))
    moved = boxes + (classes * (boxes.max() + 1))[:, None]
    keep = nms(moved, scores, iou_threshold)
    num_kept = torch.sym_min(keep.shape[0] - 2, max_detections)
    torch._check(num_kept <= keep.shape[0])  # PyTorch 2.8 does not see it by itself
    return keep[:num_kept]
