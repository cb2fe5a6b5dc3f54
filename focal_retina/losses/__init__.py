"""Classification losses: dense logits and integer labels in, a sum and perhaps a count out.

N images, R_l anchors of level l, K classes. A loss is an ``nn.Module``, ``loss(logits, labels)``:
``logits`` are a list over levels of (N, R_l, K), of one floating dtype and any strides; ``labels``
a list of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background. It returns the sum over anchors
and classes (0-dim, fp32 or wider), and a count or None. The whole contract: docs/add_a_loss.md.
"""

from .alpha import balanced_alpha
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
from .normalizer import BatchNormalizer, EmaNormalizer, ImageNormalizer
from .ohem import OHEM
