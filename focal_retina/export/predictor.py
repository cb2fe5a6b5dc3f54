"""One interface to a detector in PyTorch, in a ``.pt2`` and in an ``.onnx``."""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..engine import UserError, load_config
from ..engine.precision import build_inference_copy
from ..engine.trained_model import load_trained_model
from ..modeling import FocalRetinaNet
from .convert import require_packages
from .meta import ModelMeta, build_meta

Graph = Callable[[Tensor], Sequence[Tensor]]


class Predictor(abc.ABC):
    """Images in, detections out, whatever runs the network.

    Attributes:
        meta: classes, thresholds and preprocessing.
    """

    def __init__(self, meta: ModelMeta):
        self.meta = meta

    @abc.abstractmethod
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """
        Args:
            images: each (H, W, 3) uint8, BGR, of any size.

        Returns:
            Of each image Instances on the CPU with ``pred_boxes`` in its pixels, ``scores`` and
            ``pred_classes``, the highest score first.
        """


class EagerPredictor(Predictor):
    """A model of Detectron2's interface; the images are one batch."""

    def __init__(self, model: nn.Module, meta: ModelMeta):
        super().__init__(meta)
        self.model = model.eval()

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        batch = [
            {
                "image": self.meta.preprocessing.resize(image),
                "height": image.shape[0],
                "width": image.shape[1],
            }
            for image in images
        ]
        return [x["instances"].to("cpu") for x in self.model(batch)] if batch else []


class GraphPredictor(Predictor):
    """An exported network, which takes one image at a time."""

    def __init__(self, graph: Graph, meta: ModelMeta):
        """
        Args:
            graph: what :class:`DenseNetwork` or (``meta.with_nms``) :class:`DetectionNetwork` does.
            meta: of the export.
        """
        super().__init__(meta)
        self.graph = graph
        self.postprocessor = meta.postprocessor()

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        return [self._predict_image(image) for image in images]

    def _predict_image(self, image: np.ndarray) -> Instances:
        resized = self.meta.preprocessing.resize(image)
        outputs = self.graph(self.meta.preprocessing.pad(resized))
        size = resized.shape[1], resized.shape[2]
        detections = self._detections(outputs, size)
        return detector_postprocess(detections, *image.shape[:2])

    def _detections(self, outputs: Sequence[Tensor], size: tuple[int, int]) -> Instances:
        if self.meta.with_nms:
            boxes, scores, classes = outputs
            return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        count = len(self.meta.levels)
        logits, deltas, anchors = (outputs[i * count : (i + 1) * count] for i in range(3))
        (detections,) = self.postprocessor(
            [Boxes(x) for x in anchors], list(logits), list(deltas), [size]
        )
        return detections


def load_predictor(path: str | Path) -> Predictor:
    """
    Args:
        path: a ``.pt2`` or ``.onnx`` of ``tools/export_model.py``, with its ``meta.json`` beside
            it; or a training's folder with ``config.yaml`` and ``model_final.pth``.

    Raises:
        UserError: it is neither, or a package is missing.
        OSError, ValueError: a file is missing or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return build_eager_predictor(load_config(path))
    if path.suffix not in _GRAPH_LOADERS:
        raise UserError(f"{path}: expected a training's folder, or a file *.pt2 or *.onnx")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    meta = ModelMeta.load(path.parent)
    return GraphPredictor(_GRAPH_LOADERS[path.suffix](path), meta)


def load_detector(cfg: CfgNode) -> FocalRetinaNet:
    """The model of ``cfg`` with the weights MODEL.WEIGHTS.

    Raises:
        UserError: there are none, they don't fit, or it is another kind of model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: name a checkpoint")
    model = load_trained_model(cfg)
    if not isinstance(model, FocalRetinaNet):
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: set it to FocalRetinaNet, "
            "which loads the checkpoints of RetinaNet, too"
        )
    return model


def build_eager_predictor(cfg: CfgNode) -> EagerPredictor:
    """:func:`load_detector`, made fast, in the arithmetic of INFERENCE_PRECISION."""
    model = load_detector(cfg)
    fast = build_inference_copy(cfg, model)
    return EagerPredictor(fast, build_meta(cfg, model))


def _load_program(path: Path) -> Graph:
    try:
        return torch.export.load(path).module()
    except Exception as error:  # of unpickling, unzipping or a version mismatch
        raise ValueError(f"{path} is not a .pt2 that this PyTorch can read: {error}") from error


def _load_onnx(path: Path) -> Graph:
    require_packages("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime's classes of errors have no common base
        raise ValueError(f"{path} is not an .onnx that onnxruntime can read: {error}") from error

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]

    return run


_GRAPH_LOADERS: dict[str, Callable[[Path], Graph]] = {".pt2": _load_program, ".onnx": _load_onnx}
