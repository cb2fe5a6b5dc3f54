"""The losses of the network that is evaluated, on what it is evaluated on."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from ..losses import ImageNormalizer
from ..losses.normalizer import call_loss

_logger = logging.getLogger(__name__)


class ValidationLoss(DatasetEvaluator):
    """Training's losses, from the outputs that the detections are made of: without a second pass.

    The sums over all images are divided by what the normalizer counts in all images, as if the set
    were one batch: with "ema", too, whose state stays.
    """

    def __init__(self, model: Any, dataset_name: str, indices: Sequence[int] | None = None):
        """``model``: a FocalRetinaNet in evaluation mode, whose inputs have ``instances``;
        ``indices``: see :class:`ClassSelector`."""
        self._model, self._name = model, dataset_name
        self._class_of = {k: i for i, k in enumerate(indices or range(model.num_classes))}
        model.head.register_forward_hook(self._keep)

    def _keep(self, head: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        self._outputs = inputs[0], *outputs

    def reset(self) -> None:
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep of each image: sums of loss_cls and loss_box_reg, what divides each, (4,)."""
        if not all("instances" in x for x in inputs):  # not annotated, or not readable
            return
        model = self._model
        for gt in (x["instances"] for x in inputs):
            classes = [self._class_of.get(k, k) for k in gt.gt_classes.tolist()]
            gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
        anchors, logits, deltas = model.by_anchor(*self._outputs)
        labels, image_idxs, anchor_idxs, _, gt_boxes = model.label(anchors, inputs)
        boxes = [x.tensor for x in anchors]
        levels = labels.split([len(x) for x in boxes], dim=1)
        pred_deltas = torch.cat(deltas, dim=1)[image_idxs, anchor_idxs]
        box_losses = model.box_loss(pred_deltas, torch.cat(boxes)[anchor_idxs], gt_boxes)
        one = box_losses.new_ones(())
        for i, count in enumerate(image_idxs.bincount(minlength=len(labels))):
            x, y = [z[i : i + 1] for z in logits], [z[i : i + 1] for z in levels]
            cls_sum, own_count = call_loss(model.cls_loss, x, y, one, boxes)
            row = cls_sum, box_losses[image_idxs == i].sum(), count, count
            row = row if own_count is None else (*row[:2], own_count, count)
            self._rows.append(torch.stack([value.double() for value in row]).cpu())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"validation": total_loss, loss_cls and loss_box_reg}; None where nothing is annotated,
        and in other processes than the main one."""
        rows = [row for part in comm.gather(self._rows) for row in part]
        if not comm.is_main_process():
            return None
        if not rows or not (table := torch.stack(rows))[:, 3].any():
            _logger.warning(f"{self._name} has no annotated objects: no validation loss")
            return None
        sums, counts = table[:, :2], table[:, 2:]
        if isinstance(self._model.loss_normalizer, ImageNormalizer):
            means = (sums / counts.clamp(min=1)).mean(dim=0)
        else:
            means = sums.sum(dim=0) / counts.sum(dim=0).clamp(min=1)
        parts = zip(("total_loss", "loss_cls", "loss_box_reg"), (means.sum(), *means), strict=True)
        losses = {name: value.item() for name, value in parts}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        _logger.info(f"validation loss on {self._name}: {shown}")
        return {"validation": losses}
