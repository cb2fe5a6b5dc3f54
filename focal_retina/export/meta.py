"""What an exported file's user has to know, as ``meta.json`` beside it: classes, thresholds and how
an image becomes the network's input."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from ..files import atomic_write
from ..modeling import DensePostprocessor, FocalRetinaNet

META_FILE = "meta.json"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """From a BGR image to the network's input.

    Attributes:
        input_format: channel order that the network wants, ``BGR`` or ``RGB``.
        min_size, max_size: the shorter side becomes ``min_size``, unless the longer one would pass
            ``max_size`` and becomes that. (Pillow's bilinear filter, as in Detectron2.)
        pixel_mean, pixel_std: a channel; an exported graph applies them itself.
        size_divisibility: height and width are padded to its multiples, at the bottom and right,
            with ``pixel_mean``, which the normalization makes zero.
        smallest_side: of the padded input of an exported graph.
    """

    input_format: str
    min_size: int
    max_size: int
    pixel_mean: list[float]
    pixel_std: list[float]
    size_divisibility: int
    smallest_side: int

    def resize(self, image: np.ndarray) -> Tensor:
        """
        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            (3, h, w) float32, in the network's size and channel order, neither normalized nor
            padded.
        """
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        resize = ResizeShortestEdge([self.min_size, self.min_size], self.max_size)
        image = resize.get_transform(image).apply_image(image)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()

    def pad(self, image: Tensor) -> Tensor:
        """Make (3, h, w) one image (1, 3, H, W) that an exported graph takes."""
        height, width = (
            max(-(-side // self.size_divisibility) * self.size_divisibility, self.smallest_side)
            for side in image.shape[1:]
        )
        padded = torch.tensor(self.pixel_mean)[:, None, None].repeat(1, height, width)
        padded[:, : image.shape[1], : image.shape[2]] = image
        return padded[None]


@dataclass(frozen=True)
class ModelMeta:
    """
    Attributes:
        classes: names, by class index.
        category_ids: of the data set, by class index.
        levels: the feature maps that the head sees, high resolution first.
        with_nms: whether an exported graph gives detections, or dense predictions and anchors.
        score_thresh, topk_candidates, nms_thresh, max_detections, box_weights: see
            :class:`DensePostprocessor` and Detectron2's ``Box2BoxTransform``.
    """

    classes: list[str]
    category_ids: list[int]
    levels: list[str]
    with_nms: bool
    score_thresh: float
    topk_candidates: int
    nms_thresh: float
    max_detections: int
    box_weights: list[float]
    preprocessing: Preprocessing

    def postprocessor(self) -> DensePostprocessor:
        """What makes detections of a graph's dense predictions."""
        return DensePostprocessor(
            box2box_transform=Box2BoxTransform(weights=tuple(self.box_weights)),
            score_thresh=self.score_thresh,
            topk_candidates=self.topk_candidates,
            nms_thresh=self.nms_thresh,
            max_detections=self.max_detections,
        )

    def save(self, folder: Path) -> None:
        with atomic_write(folder / META_FILE) as file:
            file.write(f"{json.dumps(dataclasses.asdict(self), indent=1)}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> "ModelMeta":
        """Read ``meta.json``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was not written by :meth:`save`.
        """
        path = folder / META_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: it belongs beside the exported file")
        try:
            contents = json.loads(path.read_text())
            preprocessing = Preprocessing(**contents.pop("preprocessing"))
            return cls(**contents, preprocessing=preprocessing)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not describe an exported model ({error}): export it anew"
            ) from error


def build_meta(cfg: CfgNode, model: FocalRetinaNet, *, with_nms: bool = True) -> "ModelMeta":
    """Describe ``model``, which was built of ``cfg``. Class names are those of the registered data
    sets DATASETS.TEST and TRAIN; where none fits they are ``class 0`` and so on."""
    divisibility = model.backbone.size_divisibility
    coarsest = max(model.backbone.output_shape()[x].stride for x in model.head_in_features)
    postprocessor = model.postprocessor
    return ModelMeta(
        **_class_names(cfg, model.num_classes),
        levels=list(model.head_in_features),
        with_nms=with_nms,
        score_thresh=postprocessor.score_thresh,
        topk_candidates=postprocessor.topk_candidates,
        nms_thresh=postprocessor.nms_thresh,
        max_detections=postprocessor.max_detections,
        box_weights=list(postprocessor.box2box_transform.weights),
        preprocessing=Preprocessing(
            input_format=cfg.INPUT.FORMAT,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
            pixel_std=list(cfg.MODEL.PIXEL_STD),
            size_divisibility=divisibility,
            # torch.export takes maps of one row or column for a case of their own.
            smallest_side=(coarsest // divisibility + 1) * divisibility,
        ),
    )


def _class_names(cfg: CfgNode, num_classes: int) -> dict[str, Any]:
    registered = MetadataCatalog.list()
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name) if name in registered else None
        classes = metadata.get("thing_classes") if metadata is not None else None
        if metadata is None or classes is None or len(classes) != num_classes:
            continue
        to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
        to_category = {label: category for category, label in to_class.items()}
        ids = [to_category.get(i, i + 1) for i in range(num_classes)]
        return {"classes": list(classes), "category_ids": ids}
    _logger.warning(
        "no data set of DATASETS.TEST and TRAIN is known here with %d classes, so they have no "
        "names; --register NAME=ANNOTATIONS.json:IMAGE_DIR brings them",
        num_classes,
    )
    return {
        "classes": [f"class {i}" for i in range(num_classes)],
        "category_ids": [i + 1 for i in range(num_classes)],
    }
