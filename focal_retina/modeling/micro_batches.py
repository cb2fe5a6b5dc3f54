"""A batch in pieces that fit the memory, with the losses and gradients of the whole.

The losses are sums over a divisor that counts the whole batch: how many anchors are positive. So
the labels of all micro-batches come before the first forward pass; they need the sizes of the
feature maps alone. A loss that counts by itself (OHEM) needs the logits, too: one more forward
pass of each micro-batch, without gradients.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from ..losses.normalizer import WholeBatch, loss_sums
from .backbones import feature_shapes_of
from .meta_arch import FocalRetinaNet


@torch.no_grad()
def look_ahead(model: FocalRetinaNet, batches: Sequence[list[dict]]) -> list[WholeBatch]:
    """What each micro-batch needs to know of all of them, for :meth:`FocalRetinaNet.forward`; its
    ValueErrors. With a loss that counts by itself, each worker must call."""
    counts_itself = not getattr(model.cls_loss, "takes_normalizer", False)
    # Batch normalization's statistics move in the forward passes to come.
    buffers = [(x, x.clone()) for x in model.buffers() if counts_itself]
    strides = [x.stride for x in feature_shapes_of(model.backbone, model.head_in_features)]
    num_anchors, num_positives, counts = [], [], []
    for batch in batches:
        images = model.preprocess_image(batch).tensor
        if counts_itself:
            anchors, logits, _ = model.dense_predictions(images)
        else:
            sizes = [[-(-side // stride) for side in images.shape[2:]] for stride in strides]
            anchors = model.anchors([images.new_empty(0, *size) for size in sizes])
        labels = model.label(anchors, batch)[0]
        num_anchors.append(labels.shape[1])
        num_positives.append(model.is_positive(labels).sum(dim=1))
        if counts_itself:
            levels = list(labels.split([len(x) for x in anchors], dim=1))
            own = loss_sums(model.cls_loss, logits, levels, [x.tensor for x in anchors])[1]
            counts += [] if own is None else [own]
    for buffer, before in buffers:
        buffer.copy_(before)
    starts = accumulate(map(len, batches[:-1]), initial=0)
    whole = torch.cat(num_positives), torch.cat(counts) if counts else None
    return [WholeBatch(*whole, *x) for x in zip(starts, num_anchors, strict=True)]
