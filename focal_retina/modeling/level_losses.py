"""Where a loss comes from: its parts by level, for a batch whose loss is not finite.

Shapes: N images, R_l anchors of level l, L levels, P positive anchors of a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..losses import normalized_loss

if TYPE_CHECKING:
    from .meta_arch import FocalRetinaNet

__all__ = ["losses_by_level"]

_MAX_BOXES = 20


@torch.no_grad()
def losses_by_level(model: FocalRetinaNet, batched_inputs: list[dict]) -> list[dict[str, Any]]:
    """Compute the losses of one training batch level by level.

    The levels add up to the losses of the batch, but for OHEM, which mines among the anchors that
    it is given. The normalizer counts the batch, as a training step does.

    Args:
        model: in training mode.
        batched_inputs: as for ``forward``.

    Returns:
        A dict a level: ``loss_cls`` and ``loss_box_reg``; ``num_anchors`` and ``num_positives``;
        ``max_logit`` and ``max_delta``, the largest absolute outputs; and ``boxes``, at most 20
        positives whose box loss is not finite: image (its index in the batch), anchor, gt_box and
        deltas.
    """
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    features = [features[f] for f in model.head_in_features]
    logits, deltas = model._transpose_dense_predictions(
        model.head(features), [model.num_classes, 4]
    )
    anchors = model.anchor_generator(features)
    gt_instances = [x["instances"].to(model.device) for x in batched_inputs]
    labels, matched_idxs = model.anchor_labeler(anchors, gt_instances)
    is_positive = (labels >= 0) & (labels != model.num_classes)
    normalizer = model.loss_normalizer(is_positive.sum(dim=1))

    sizes = [len(level) for level in anchors]
    levels = zip(
        anchors,
        logits,
        deltas,
        labels.split(sizes, dim=1),
        matched_idxs.split(sizes, dim=1),
        is_positive.split(sizes, dim=1),
        strict=True,
    )
    report = []
    for level_anchors, x, d, y, matched, positive in levels:
        cls_loss = normalized_loss(
            model.cls_loss, [x], [y], normalizer, anchors=[level_anchors.tensor]
        )
        image_idxs, anchor_idxs = positive.nonzero(as_tuple=True)
        pred_deltas = d[image_idxs, anchor_idxs]
        positives = level_anchors.tensor[anchor_idxs]
        gt_boxes = torch.zeros_like(positives)
        for i, gt in enumerate(gt_instances):
            own = image_idxs == i
            gt_boxes[own] = gt.gt_boxes.tensor[matched[i, anchor_idxs[own]]]
        box_losses = model.box_loss(pred_deltas, positives, gt_boxes)
        box_loss = (box_losses / normalizer.expand(len(gt_instances))[image_idxs]).sum()
        report.append(
            {
                "loss_cls": cls_loss.item(),
                "loss_box_reg": box_loss.item(),
                "num_anchors": y.numel(),
                "num_positives": len(image_idxs),
                "max_logit": x.abs().max().item(),
                "max_delta": d.abs().max().item(),
                "boxes": [
                    {
                        "image": int(image_idxs[p]),
                        "anchor": positives[p].tolist(),
                        "gt_box": gt_boxes[p].tolist(),
                        "deltas": pred_deltas[p].tolist(),
                    }
                    for p in (~box_losses.isfinite()).nonzero()[:_MAX_BOXES, 0].tolist()
                ],
            }
        )
    return report
