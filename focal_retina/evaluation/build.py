"""The evaluator of a data set, by its metadata."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator

from .coco_evaluator import COCOEvaluator

_EVALUATORS = {"coco": COCOEvaluator, "lvis": LVISEvaluator}


def build_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Build the evaluator that ``MetadataCatalog.get(dataset_name).evaluator_type`` names.

    Args:
        dataset_name: a registered data set.
        output_dir: where the predictions are written, as COCO results json.

    Raises:
        ValueError: there is no evaluator for the data set's type.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}; "
            f"this trainer evaluates {' and '.join(_EVALUATORS)}; "
            "override Trainer.build_evaluator for yours"
        )
    return _EVALUATORS[evaluator_type](dataset_name, output_dir=output_dir)
