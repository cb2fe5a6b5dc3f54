from .coco_evaluator import ClassSelector, COCOEvaluator, build_evaluator
