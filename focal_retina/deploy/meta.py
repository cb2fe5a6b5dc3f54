"""What an exported file's user has to know, as ``meta.json`` beside it: classes, thresholds and how
an image becomes the network's input."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from ..data.classes import model_classes, model_threshold
from ..files import write_json
from ..modeling import DensePostprocessor, FocalRetinaNet

META_FILE = "meta.json"
_THRESHOLDS = [x.name for x in fields(DensePostprocessor) if x.name != "box2box_transform"]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """From a BGR image to the network's input."""

    input_format: str  # channel order that the network wants, BGR or RGB
    min_size: int  # of the shorter side, unless the longer one would pass
    max_size: int  # and becomes that; by Pillow's bilinear filter, as in Detectron2
    pixel_mean: list[float]  # a channel; an exported graph normalizes by itself
    pixel_std: list[float]
    size_divisibility: int  # of height and width, padded at the bottom and right with pixel_mean
    smallest_side: int  # of the padded input of an exported graph

    def resize(self, image: np.ndarray) -> Tensor:
        """An image (H, W, 3) uint8, BGR, as (3, h, w) float32 in the network's size and channel
        order, neither normalized nor padded."""
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        resize = ResizeShortestEdge([self.min_size, self.min_size], self.max_size)
        image = resize.get_transform(image).apply_image(image)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """Make N images (3, h, w) the batch (N, 3, H, W), H and W those of the largest, that an
        exported graph takes."""
        unit = self.size_divisibility
        height, width = (
            max(-(-max(sides) // unit) * unit, self.smallest_side)
            for sides in zip(*(x.shape[1:] for x in images), strict=True)
        )
        mean = torch.tensor(self.pixel_mean)[:, None, None]
        padded = mean.repeat(len(images), 1, height, width)
        for i, image in enumerate(images):
            padded[i, :, : image.shape[1], : image.shape[2]] = image
        return padded


@dataclass(frozen=True)
class ModelMeta:
    classes: list[str]  # names, by class index
    category_ids: list[int]  # of the data set, by class index
    levels: list[str]  # the feature maps that the head sees, high resolution first
    with_nms: bool  # whether a graph gives detections, or dense predictions and anchors
    score_thresh: float  # this and the next four: see DensePostprocessor
    topk_candidates: int
    nms_thresh: float
    max_detections: int
    class_agnostic_nms: bool
    box_weights: list[float]  # of Detectron2's Box2BoxTransform
    preprocessing: Preprocessing
    # The lowest score of what is shown, that of the best F1; None: the training left none.
    threshold: float | None = None
    max_image_pixels: int = 178_956_970  # INPUT.MAX_IMAGE_PIXELS

    def postprocessor(self) -> DensePostprocessor:
        """What makes detections of a graph's dense predictions."""
        return DensePostprocessor(
            box2box_transform=Box2BoxTransform(weights=tuple(self.box_weights)),
            **{name: getattr(self, name) for name in _THRESHOLDS},
        )

    def save(self, folder: Path) -> None:
        write_json(folder / META_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "ModelMeta":
        """What :meth:`save` wrote; else a FileNotFoundError or ValueError."""
        path = folder / META_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: it belongs beside the exported file")
        try:
            contents = json.loads(path.read_text("utf-8"))
            return cls(**contents | {"preprocessing": Preprocessing(**contents["preprocessing"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"does not describe an exported model ({error}): export it anew"
            raise ValueError(f"{path} {problem}") from error


def build_meta(cfg: CfgNode, model: FocalRetinaNet, *, with_nms: bool = True) -> ModelMeta:
    """Describe ``model``, which was built of ``cfg``. Its classes are those of
    :func:`~focal_retina.data.classes.model_classes`; unknown, they are ``class 0`` and so on."""
    num_classes, known = model.num_classes, model_classes(cfg)
    names, ids = [f"class {i}" for i in range(num_classes)], list(range(1, num_classes + 1))
    if known and len(known.names) == num_classes:
        names, ids = known.names, known.category_ids
    else:
        _logger.warning(
            f"{cfg.MODEL.WEIGHTS} has no classes.json beside it, and no set of DATASETS.TRAIN is "
            f"known here with {num_classes} classes, so they have no names; --register "
            "NAME=ANNOTATIONS.json:IMAGE_DIR brings them"
        )
    divisibility = model.backbone.size_divisibility
    coarsest = max(model.backbone.output_shape()[x].stride for x in model.head_in_features)
    return ModelMeta(
        classes=names,
        category_ids=ids,
        levels=list(model.head_in_features),
        with_nms=with_nms,
        **{name: getattr(model.postprocessor, name) for name in _THRESHOLDS},
        box_weights=list(model.postprocessor.box2box_transform.weights),
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
        threshold=model_threshold(cfg),
        max_image_pixels=cfg.INPUT.MAX_IMAGE_PIXELS,
    )
