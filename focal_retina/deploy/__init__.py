"""A trained model out of its training's folder: exported files, and predictors that run them."""

from .meta import build_meta
from .predictor import Predictor, load_detector, load_predictor
from .targets import write_targets

__all__ = ["Predictor", "build_meta", "load_detector", "load_predictor", "write_targets"]
