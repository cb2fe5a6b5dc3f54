"""Test-time augmentation: a detector that sees each image at several sizes, and mirrored."""

from collections.abc import Callable, Iterator
from itertools import chain, groupby

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .meta_arch import FocalRetinaNet


class DenseDetectorWithTTA(nn.Module):
    """For FocalRetinaNet what :class:`detectron2.modeling.GeneralizedRCNNWithTTA` is for R-CNN.
    The candidates of all augmented images, mapped back to the original, pass NMS together.
    (Detectron2's class merges what NMS left of each.)"""

    def __init__(
        self, model: nn.Module, tta_mapper: Callable[[dict], list[dict]], batch_size: int = 3
    ):
        """
        Args:
            model: a FocalRetinaNet, or DistributedDataParallel around one.
            tta_mapper: an input of the model to its augmented versions, each with its
                ``transforms`` from the original image (``height`` x ``width``), such as
                :class:`detectron2.modeling.DatasetMapperTTA`.
            batch_size: at most so many augmented images are in a batch, and all of one size, so
                that padding does not change the detections.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not isinstance(model, FocalRetinaNet):
            raise ValueError(
                f"test-time augmentation (TEST.AUG) of a {type(model).__name__} is not supported: "
                "set MODEL.META_ARCHITECTURE FocalRetinaNet, which loads RetinaNet's checkpoints"
            )
        self.model = model
        self.tta_mapper = tta_mapper
        self.batch_size = batch_size

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """As :meth:`FocalRetinaNet.forward` in evaluation mode."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: dict) -> Instances:
        height, width = x["image"].shape[1:]
        x = {"height": height, "width": width, **x}
        candidates = chain.from_iterable(map(self._candidates, self._batches(self.tta_mapper(x))))
        boxes, scores, classes = map(torch.cat, zip(*candidates, strict=True))
        size = x["height"], x["width"]
        merged = self.model.postprocessor.select(boxes, scores, classes, size)
        return detector_postprocess(merged, *size)

    def _batches(self, augmented: list[dict]) -> Iterator[list[dict]]:
        for _, same_size in groupby(augmented, key=lambda x: x["image"].shape):
            inputs = list(same_size)
            for start in range(0, len(inputs), self.batch_size):
                yield inputs[start : start + self.batch_size]

    def _candidates(self, batch: list[dict]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Boxes (T, 4) in the original image, scores (T,) and classes (T,) of each input."""
        model = self.model
        anchors, logits, deltas = model.dense_predictions(model.preprocess_image(batch).tensor)
        for i, x in enumerate(batch):
            boxes, scores, classes = model.postprocessor.candidates(
                anchors, [level[i] for level in logits], [level[i] for level in deltas]
            )
            original = x["transforms"].inverse().apply_box(boxes.cpu().numpy())
            yield torch.from_numpy(original).to(boxes), scores, classes


def build_detector_with_tta(cfg: CfgNode, model: nn.Module) -> DenseDetectorWithTTA:
    """``model`` with the augmentations of ``TEST.AUG``: MIN_SIZES, MAX_SIZE and FLIP."""
    return DenseDetectorWithTTA(model, DatasetMapperTTA(cfg))
