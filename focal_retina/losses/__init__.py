"""Classification losses: dense logits and integer labels in, a sum and perhaps a count out.

The contract, which a loss of your own keeps too (docs/add_a_loss.md). N images, R_l anchors of
level l, K classes:

* a loss is an ``nn.Module`` in :data:`CLS_LOSS_REGISTRY`, called as ``loss(logits, labels)``;
* ``logits``: list over levels of (N, R_l, K), one floating dtype, not necessarily contiguous;
* ``labels``: list over levels of int64 (N, R_l): -1 ignored, 0 … K-1 a class, K background;
* the loss returns its sum over anchors and classes (0-dim, fp32 or wider), and a count (0-dim): the
  model divides the sum by it, added up over all workers and at least 1, or, where it is None, by
  the foreground normalizer;
* a class with ``needs_anchors = True`` also gets ``anchors``: list over levels of (R_l, 4) boxes,
  XYXY in pixels;
* a class with ``takes_normalizer = True`` also gets the foreground ``normalizer``, divides its sum
  by it, and returns no count: so it saves a pass over the gradient.
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
