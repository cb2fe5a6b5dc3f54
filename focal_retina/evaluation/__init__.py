from .coco_evaluator import ClassSelector, COCOEvaluator, build_evaluator
from .validation_loss import ValidationLoss
