"""Whether predictors find the same, what AP each has and how long each takes."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Instances
from torch.utils.benchmark import Timer
from tqdm import tqdm

from ..data import CorruptImageError, check_num_classes, read_image
from ..data.classes import index_in_dataset
from ..data.images import in_one_line
from ..evaluation import ClassSelector, build_evaluator
from ..modeling import FocalRetinaNet
from ..modeling.inference import inference_copy
from .export import TARGETS
from .meta import ModelMeta
from .predictor import Predictor, load_predictor

# Of scores, and of boxes in pixels. fp32 has 7 digits, and an exponential of the network's output
# scales the box.
TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-5

Predictors = Mapping[str, Predictor]  # by names that tables show
Indices = Mapping[str, list[int] | None]  # of data sets, see index_in_dataset


@dataclass
class Agreement:
    """What two predictors found in the same images."""

    images: int = 0
    detections: int = 0  # of the reference
    unmatched: int = 0  # detections of one that have no counterpart in the other
    score_error: float = 0.0  # the largest of counterparts
    box_error: float = 0.0  # the same, in pixels

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.detections} detections, {self.unmatched} in one alone; "
            f"largest differences: score {self.score_error:.1e}, box {self.box_error:.1e} pixels"
        )


def load_all(model: FocalRetinaNet, meta: ModelMeta, files: Mapping[str, Path]) -> Predictors:
    """The model as it is, folded for inference, and in each exported file."""
    folded = Predictor(inference_copy(model), meta)
    exported = {name: load_predictor(path, allow_code=True) for name, path in files.items()}
    return {"eager": Predictor(model, meta), "eager-folded": folded} | exported


def compare_all(predictors: Predictors, images: Sequence[np.ndarray]) -> bool:
    """Print how each agrees with the first on the images, and return whether every detection has
    its counterpart. Quantized ones, which can't, are left out."""
    (_, reference), *others = predictors.items()
    unmatched = 0
    for name, predictor in others:
        if not (name in TARGETS and TARGETS[name].is_quantized):
            agreement = compare(predictor, reference, images)
            print(f"{name}: {agreement}", flush=True)
            unmatched += agreement.unmatched
    return unmatched == 0


def compare(predictor: Predictor, reference: Predictor, images: Iterable[np.ndarray]) -> Agreement:
    """Run both on each image (H, W, 3, uint8, BGR) alone. Counterparts have the same class, scores
    within 1e-3, and boxes within 1e-3 pixels plus 1e-5 of their largest coordinate."""
    total = Agreement()
    for image in images:
        (found,), (expected,) = predictor.predict([image]), reference.predict([image])
        pairs = _counterparts(found, expected)
        total.images += 1
        total.detections += len(expected)
        in_both = sum(len(x.unique()) for x in pairs.T)
        total.unmatched += len(found) + len(expected) - in_both
        found, expected = found[pairs[:, 0]], expected[pairs[:, 1]]
        scores = (found.scores - expected.scores).abs().tolist()
        boxes = (found.pred_boxes.tensor - expected.pred_boxes.tensor).abs().flatten().tolist()
        total.score_error = max([total.score_error, *scores])
        total.box_error = max([total.box_error, *boxes])
    return total


def _counterparts(found: Instances, expected: Instances) -> torch.Tensor:
    """Pairs of indices (P, 2). Each detection is in one, but for boxes without area, which NMS
    leaves side by side."""
    boxes = found.pred_boxes.tensor[:, None], expected.pred_boxes.tensor[None]
    scale = 1 + RELATIVE_TOLERANCE / TOLERANCE * boxes[1].abs().amax(dim=2)
    difference = (boxes[0] - boxes[1]).abs().amax(dim=2) / scale
    scores = (found.scores[:, None] - expected.scores).abs()
    near = torch.maximum(difference, scores) <= TOLERANCE
    return torch.nonzero(near & (found.pred_classes[:, None] == expected.pred_classes))


def sample_images(dataset_names: Sequence[str], count: int) -> Iterable[np.ndarray]:
    """Images of registered data sets, BGR, chosen at random but always the same."""
    if not dataset_names:
        raise ValueError("no data set to take images from: set DATASETS.TEST")
    records = get_detection_dataset_dicts(list(dataset_names), filter_empty=False)
    records = random.Random(0).sample(records, min(count, len(records)))
    return (_read(record["file_name"]) for record in records)


def indices_in_datasets(classes: Sequence[str], datasets: Sequence[str]) -> Indices:
    """For :func:`ap_table`. ValueError: a data set has classes that a model does not have."""
    if classes[0] == "class 0":  # without names
        check_num_classes(len(classes), datasets)
        return dict.fromkeys(datasets)
    return {dataset: index_in_dataset(classes, dataset) for dataset in datasets}


def ap_table(predictors: Predictors, datasets: Indices, output_dir: Path) -> str:
    """AP of each (boxes, IoU .50:.05:.95, percent) on registered data sets, and its difference to
    the first's. The evaluators' files go into ``output_dir``."""
    lines = ["| data set | model | AP | difference |", "| --- | --- | ---: | ---: |"]
    for dataset, indices in datasets.items():
        aps = {}
        for name, predictor in predictors.items():
            evaluator = build_evaluator(dataset, str(output_dir / dataset / name))
            evaluator = ClassSelector(evaluator, indices) if indices else evaluator
            aps[name] = _average_precision(predictor, dataset, evaluator, name)
        first, *_ = aps.values()
        lines += [f"| {dataset} | {x} | {ap:.2f} | {ap - first:+.2f} |" for x, ap in aps.items()]
    return "\n".join(lines)


def _average_precision(
    predictor: Predictor, dataset: str, evaluator: DatasetEvaluator, name: str
) -> float:
    def detect(records: list[dict]) -> list[dict]:
        found = predictor.predict([_read(x["file_name"]) for x in records])
        return [{"instances": x} for x in found]

    batches = tqdm([[x] for x in DatasetCatalog.get(dataset)], desc=name, unit="image")
    results = inference_on_dataset(detect, batches, evaluator)
    return float(results.get("bbox", {}).get("AP", math.nan))  # of a set without annotations


def _read(file_name: str) -> np.ndarray:
    try:
        return read_image(file_name)
    except Exception as error:  # of Pillow's decoders
        message = f"{file_name}: {in_one_line(error)}; repair or remove it"
        raise CorruptImageError(message) from error


def time_table(predictors: Predictors, images: Sequence[np.ndarray]) -> str:
    """Median time of each for all images, one by one, resizing and NMS included."""
    threads, medians = torch.get_num_threads(), {}
    for name, predictor in predictors.items():
        statement = "for image in images: predictor.predict([image])"
        values = {"images": images, "predictor": predictor}
        timer = Timer(statement, globals=values, num_threads=threads)
        medians[name] = timer.blocked_autorange(min_run_time=2).median
    first, *_ = medians.values()
    lines = [f"| {threads} threads | {len(images)} images | × eager |", "| --- | ---: | ---: |"]
    lines += [f"| {x} | {1e3 * t:.0f} ms | {t / first:.2f} |" for x, t in medians.items()]
    return "\n".join(lines)
