"""A trained model out of its training's folder: exported files, and predictors that run them."""

from .export import write_targets
from .meta import build_meta
from .predictor import Predictor, TiledPredictor, load_predictor
