"""Test-time augmentation: a detector that sees each image at several sizes, and mirrored."""

from collections.abc import Callable, Iterable
from itertools import groupby, islice
from typing import Protocol

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .meta_arch import FocalRetinaNet
from .postprocess import Candidates, DensePostprocessor


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
        size = x["height"], x["width"]
        return merged_detections(self.model, self.tta_mapper(x), size, self.batch_size)


class Detector(Protocol):
    """What :func:`merged_detections` needs of a FocalRetinaNet."""

    postprocessor: DensePostprocessor

    def candidates(self, batched_inputs: list[dict]) -> list[Candidates]: ...


def merged_detections(
    model: Detector, views: Iterable[dict], size: tuple[int, int], batch_size: int
) -> Instances:
    """What ``model`` finds in an image of ``size``, (height, width), that it sees as ``views``: its
    inputs, each with its ``transforms`` from the image. For ``batch_size``, see above."""
    candidates = []
    for _, same_size in groupby(views, key=lambda x: x["image"].shape):
        while batch := list(islice(same_size, batch_size)):
            for x, (boxes, *others) in zip(batch, model.candidates(batch), strict=True):
                original = x["transforms"].inverse().apply_box(boxes.cpu().numpy())
                candidates.append((torch.from_numpy(original).to(boxes), *others))
    boxes, scores, classes = map(torch.cat, zip(*candidates, strict=True))
    return detector_postprocess(model.postprocessor.select(boxes, scores, classes, size), *size)
