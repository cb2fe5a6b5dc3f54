"""A trained model out of its training's folder: exported files, and predictors that run them."""

from .meta import ModelMeta, build_meta
from .predictor import Predictor, load_detector, load_predictor
from .targets import TARGETS, Target, write_targets

__all__ = [
    "TARGETS",
    "ModelMeta",
    "Predictor",
    "Target",
    "build_meta",
    "load_detector",
    "load_predictor",
    "write_targets",
]
