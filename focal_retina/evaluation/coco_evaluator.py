"""Detectron2's COCOEvaluator, its box metrics computed far faster, and explained."""

import itertools
import json
import logging
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as Detectron2COCOEvaluator
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, LVISEvaluator

from ..files import annotation_file
from .box_metrics import STANDARD_MAX_DETS, evaluate_boxes
from .explanation import write_explanation

_logger = logging.getLogger(__name__)


class COCOEvaluator(Detectron2COCOEvaluator):
    """Detectron2's, but boxes by :mod:`.box_metrics`, and explained by :mod:`.explanation`. Where
    objects exist and nothing was found, AP is 0, not NaN. ``max_dets_per_image`` n above 100 adds
    ``AP@n``, and leaves the other numbers at 100.

    An annotation without "iscrowd" is no crowd, and one whose "area" is missing or false has that
    of its box, which the log says; Detectron2's fails at them, or takes the false areas. Images
    that could not be read (samples with ``is_unreadable``) count neither way, and are counted.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        # Not what an earlier process has made of a data set without a json, which may have changed
        kwargs.setdefault("allow_cached_coco", False)
        super().__init__(*args, **kwargs, use_fast_impl=False)  # hotcoco is faster
        if self._max_dets_per_image[-1] > STANDARD_MAX_DETS:
            self._max_dets_per_image.insert(2, STANDARD_MAX_DETS)
        annotations = self._coco_api.dataset.get("annotations", [])
        is_false = has_false_area(annotations)
        for annotation, replace in zip(annotations, is_false, strict=True):
            annotation.setdefault("iscrowd", 0)
            if replace:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if is_false.any():
            text = '%s: %d annotations have no "area", or a false one; that of their box counts'
            _logger.warning(text, self._metadata.name, is_false.sum())

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            super().process([sample], [output])
            if sample.get("is_unreadable"):
                self._predictions[-1].update(instances=[], is_unreadable=True)

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Iterable[Hashable] | None = None
    ) -> None:
        unread = {p["image_id"] for p in predictions if p.get("is_unreadable")}
        if unread and self._do_evaluation:
            img_ids = set(self._coco_api.imgs if img_ids is None else img_ids) - unread
            _logger.warning("%d images could not be read and are not evaluated", len(unread))
        detections = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        tasks = self._tasks or self._tasks_from_predictions(detections)
        if list(tasks) != ["bbox"] or not self._do_evaluation:
            super()._eval_predictions(predictions, img_ids)
        else:
            self._eval_boxes(detections, img_ids)
        if unread and "bbox" in self._results:
            self._results["bbox"]["unreadable_images"] = len(unread)

    def _eval_boxes(self, detections: list[dict], img_ids: Iterable[Hashable] | None) -> None:
        if not detections:
            _logger.warning(
                "%s: the model found nothing, so that AP is 0; look at the losses in metrics.json, "
                "at SOLVER.BASE_LR and MAX_ITER, and at MODEL.RETINANET.SCORE_THRESH_TEST",
                self._metadata.name,
            )
        self._to_dataset_categories(detections)
        if self._output_dir:
            path = Path(self._output_dir, "coco_instances_results.json")
            path.write_text(json.dumps(detections))
        coco_eval = evaluate_boxes(
            self._coco_api, detections, image_ids=img_ids, max_dets=self._max_dets_per_image
        )
        class_names, limits = self._metadata.get("thing_classes"), coco_eval.params.maxDets
        precision = coco_eval.eval["precision"]
        coco_eval.eval["precision"] = precision[..., :3]
        results = self._derive_coco_results(coco_eval, "bbox", class_names)
        if len(limits) > 3:
            known = precision[:, :, :, 0, 3][precision[:, :, :, 0, 3] > -1]
            results[f"AP@{limits[3]}"] = 100 * float(known.mean()) if known.size else np.nan
            _logger.info("AP@%d: %.3f", limits[3], results[f"AP@{limits[3]}"])
        self._results["bbox"] = results
        if self._output_dir:
            names = class_names or [str(category) for category in coco_eval.params.catIds]
            write_explanation(coco_eval, names, self._metadata.name, Path(self._output_dir))

    def _to_dataset_categories(self, detections: list[dict[str, Any]]) -> None:
        to_class = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_class is None:
            return
        to_category = {label: category for category, label in to_class.items()}
        for detection in detections:
            label = detection["category_id"]
            if label not in to_category:
                raise ValueError(
                    f"a detection in image {detection['image_id']!r} has class {label}, but "
                    f"{self._metadata.name} has {len(to_category)} classes: "
                    "MODEL.RETINANET.NUM_CLASSES does not fit the data"
                )
            detection["category_id"] = to_category[label]


def has_false_area(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Which annotations have an "area" that is missing or no positive number: bool (M,). All of
    them, where it is a placeholder: the same for boxes of different areas, or at most 1."""
    given: list[Any] = [x.get("area") for x in annotations]
    areas = np.array([x if type(x) in (int, float) and abs(x) < 1e308 else np.nan for x in given])
    boxes = np.array([x["bbox"] for x in annotations], np.float64).reshape(-1, 4)[:, 2:].prod(1)
    with np.errstate(invalid="ignore"):
        is_false = ~(areas > 0) & (areas != boxes)
        areas, boxes = areas[~is_false], boxes[~is_false]
        if len(areas) and (areas.max() <= 1 < boxes.max() or np.ptp(areas) == 0 < np.ptp(boxes)):
            is_false[:] = True
    return is_false


class _LVISEvaluator(LVISEvaluator):
    """Detectron2's, which finds nothing in images that could not be read."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            if not sample.get("is_unreadable"):
                super().process([sample], [output])


class ClassSelector(DatasetEvaluators):
    """It hands an evaluator the detections of its data set's classes, numbered as there."""

    def __init__(self, evaluator: DatasetEvaluator, indices: Sequence[int]):
        """``indices``: of each class of the model in the data set; -1 where the set lacks it."""
        super().__init__([evaluator])
        self._indices = torch.tensor(indices)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        selected = []
        for output in outputs:
            instances = output["instances"].to("cpu")
            classes = self._indices[instances.pred_classes]
            selected.append({**output, "instances": instances[classes >= 0]})
            selected[-1]["instances"].pred_classes = classes[classes >= 0]
        super().process(inputs, selected)


_EVALUATORS = {"coco": COCOEvaluator, "lvis": _LVISEvaluator}


def build_evaluator(dataset_name: str, output_dir: str, *, max_dets: int = 100) -> DatasetEvaluator:
    """The evaluator that the metadata's ``evaluator_type`` names; ValueError where there is none.
    It writes the predictions to ``output_dir``, as COCO results json. ``max_dets`` above 100 adds
    COCO's AP at that many detections an image."""
    annotation_file(dataset_name)  # an evaluator reads it
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}, not {' or '.join(_EVALUATORS)}"
            "; override Trainer.build_evaluator for yours"
        )
    # LVIS has a limit of its own.
    limit = {"max_dets_per_image": max(STANDARD_MAX_DETS, max_dets)} if kind == "coco" else {}
    return _EVALUATORS[kind](dataset_name, output_dir=output_dir, **limit)
