"""Classification losses: dense logits and integer labels in, a sum and perhaps a count out.

The contract, which a loss of your own keeps too (docs/add_a_loss.md). N images, L levels, R_l
anchors of level l, K classes:

* a loss is an ``nn.Module`` in :data:`CLS_LOSS_REGISTRY`, called as ``loss(logits, labels)``;
* ``logits``: list over levels of (N, R_l, K), any floating dtype, not necessarily contiguous;
* ``labels``: list over levels of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background;
* it returns the sum over anchors and classes (0-dim, fp32 or wider) and a count: None to be
  divided by the foreground normalizer, or a 0-dim tensor to be divided by instead;
* a class that sets ``needs_anchors = True`` is also given ``anchors``: list over levels of
  (R_l, 4) boxes, XYXY in pixels.
"""

from .alpha import balanced_alpha, count_objects
from .dense import (
    CLS_LOSS_REGISTRY,
    CrossEntropy,
    DenseLoss,
    FocalLoss,
    FocalLossStar,
    build_cls_loss,
    focal_loss,
    focal_loss_star,
)
from .normalizer import (
    BatchNormalizer,
    EmaNormalizer,
    ImageNormalizer,
    build_loss_normalizer,
    normalized_loss,
)
from .ohem import OHEM

__all__ = [
    "CLS_LOSS_REGISTRY",
    "OHEM",
    "BatchNormalizer",
    "CrossEntropy",
    "DenseLoss",
    "EmaNormalizer",
    "FocalLoss",
    "FocalLossStar",
    "ImageNormalizer",
    "balanced_alpha",
    "build_cls_loss",
    "build_loss_normalizer",
    "count_objects",
    "focal_loss",
    "focal_loss_star",
    "normalized_loss",
]
