from .convert import export_program, save_onnx, save_program
from .meta import ModelMeta, Preprocessing, build_meta
from .network import DenseNetwork, DetectionNetwork
from .predictor import (
    EagerPredictor,
    GraphPredictor,
    Predictor,
    build_eager_predictor,
    load_predictor,
)
from .quantization import quantize_onnx

__all__ = [
    "DenseNetwork",
    "DetectionNetwork",
    "EagerPredictor",
    "GraphPredictor",
    "ModelMeta",
    "Predictor",
    "Preprocessing",
    "build_eager_predictor",
    "build_meta",
    "export_program",
    "load_predictor",
    "quantize_onnx",
    "save_onnx",
    "save_program",
]
