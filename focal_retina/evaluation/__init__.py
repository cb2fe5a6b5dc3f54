from .coco_evaluator import COCOEvaluator, build_evaluator

__all__ = ["COCOEvaluator", "build_evaluator"]
