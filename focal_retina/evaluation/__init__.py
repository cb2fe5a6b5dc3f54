from .coco_evaluator import ClassSelector, COCOEvaluator, build_evaluator

__all__ = ["COCOEvaluator", "ClassSelector", "build_evaluator"]
