"""Whether two predictors find the same, and what AP each has."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from tqdm import tqdm

from ..data import check_num_classes
from ..evaluation import build_evaluator
from .predictor import Predictor

TOLERANCE = 1e-3  # of scores, and of boxes in pixels
# fp32 has 7 digits, and an exponential of the network's output scales the box.
RELATIVE_TOLERANCE = 1e-5

_SEED = 0


@dataclass(frozen=True)
class Agreement:
    """What two predictors found in the same images.

    Attributes:
        images: how many.
        detections: of the reference.
        unmatched: detections of one that have no counterpart in the other.
        score_error, box_error: largest difference of counterparts, box_error in pixels.
    """

    images: int
    detections: int
    unmatched: int
    score_error: float
    box_error: float

    @property
    def is_exact(self) -> bool:
        """Whether every detection has its counterpart, within the tolerance."""
        return self.unmatched == 0

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.detections} detections, {self.unmatched} in one alone; "
            f"largest differences: score {self.score_error:.1e}, box {self.box_error:.1e} pixels"
        )


def compare(predictor: Predictor, reference: Predictor, images: Iterable[np.ndarray]) -> Agreement:
    """Run both on each image (H, W, 3, uint8, BGR) alone.

    Counterparts have the same class, scores within 1e-3, and boxes within 1e-3 pixels plus 1e-5 of
    their largest coordinate.
    """
    number = detections = unmatched = 0
    score_error = box_error = 0.0
    for image in images:
        (found,), (expected,) = predictor.predict([image]), reference.predict([image])
        pairs = _counterparts(found, expected)
        number += 1
        detections += len(expected)
        unmatched += len(found) + len(expected) - 2 * len(pairs)
        if len(pairs):
            found, expected = found[pairs[:, 0]], expected[pairs[:, 1]]
            score_error = max(score_error, _largest(found.scores - expected.scores))
            boxes = found.pred_boxes.tensor - expected.pred_boxes.tensor
            box_error = max(box_error, _largest(boxes))
    return Agreement(number, detections, unmatched, score_error, box_error)


def _counterparts(found: Instances, expected: Instances) -> torch.Tensor:
    """Pairs of indices (P, 2), each detection in one at most. (Two detections of one class that are
    both so near to a third would not have passed NMS.)"""
    boxes = found.pred_boxes.tensor[:, None], expected.pred_boxes.tensor[None]
    scale = 1 + RELATIVE_TOLERANCE / TOLERANCE * boxes[1].abs().amax(dim=2)
    difference = (boxes[0] - boxes[1]).abs().amax(dim=2) / scale
    scores = (found.scores[:, None] - expected.scores).abs()
    near = torch.maximum(difference, scores) <= TOLERANCE
    return torch.nonzero(near & (found.pred_classes[:, None] == expected.pred_classes))


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def sample_images(dataset_names: Sequence[str], count: int) -> Iterable[np.ndarray]:
    """Images of registered data sets, BGR, chosen at random but always the same.

    Raises:
        ValueError: a data set is not registered, or there is none.
    """
    if not dataset_names:
        raise ValueError("no data set to take images from: set DATASETS.TEST")
    records = get_detection_dataset_dicts(list(dataset_names), filter_empty=False)
    records = random.Random(_SEED).sample(records, min(count, len(records)))
    return (read_image(record["file_name"], "BGR") for record in records)


def average_precision(predictor: Predictor, dataset: str, output_dir: Path) -> float:
    """AP of boxes over IoU .50:.05:.95, in percent.

    Args:
        predictor: sees one image at a time.
        dataset: a registered data set.
        output_dir: for the evaluator's files.

    Raises:
        ValueError: the data set is not registered, or has another number of classes.
    """
    check_num_classes(len(predictor.meta.classes), [dataset])
    evaluator = build_evaluator(dataset, str(output_dir))
    evaluator.reset()
    for record in tqdm(DatasetCatalog.get(dataset), desc=output_dir.name, unit="image"):
        (instances,) = predictor.predict([read_image(record["file_name"], "BGR")])
        evaluator.process([record], [{"instances": instances}])
    return float(evaluator.evaluate()["bbox"]["AP"])
