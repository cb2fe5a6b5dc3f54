from .build import build_evaluator
from .coco_evaluator import COCOEvaluator

__all__ = ["COCOEvaluator", "build_evaluator"]
