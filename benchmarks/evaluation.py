"""Our COCO box metrics beside their peers, on the CPU, from the list of detections to the 12
numbers.

pycocotools needs minutes a call at the larger size, and is called four times more often than
``--runs`` says.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focal_retina.evaluation.box_metrics import evaluate_boxes

from .inputs import OBJECTS_PER_IMAGE
from .timing import Candidate, Case

IMAGE_SIZE = (640, 480)  # width, height


class Size(NamedTuple):
    """Of a test set and of what a model finds in it."""

    images: int
    detections: int  # an image
    classes: int


SIZES = (Size(1000, 100, 80), Size(5000, 100, 80))
# Images alone, then detections alone, then classes alone.
SCALING = (
    *(Size(images, 100, 80) for images in (500, 2000, 8000)),
    *(Size(1000, detections, 80) for detections in (10, 100, 1000)),
    *(Size(1000, 100, classes) for classes in (1, 80, 1203)),
)

Evaluate = Callable[[COCO, list[dict[str, Any]]], Any]


def cases(device: torch.device, sizes: Sequence[Size], peers: bool = True) -> Iterator[Case]:
    """Our metrics and those of the peers that are installed."""
    evaluators: dict[str, Evaluate] = {"ours": evaluate_boxes}
    if peers:
        evaluators["pycocotools"] = _pycocotools
        if find_spec("faster_coco_eval"):
            evaluators["faster-coco-eval"] = _faster_coco_eval
    for size in sizes:
        data = make_data(size)
        yield (
            f"{size.images:,} images × {size.detections} detections × {size.classes} classes",
            {name: _silent(evaluate, *data) for name, evaluate in evaluators.items()},
        )


def make_data(
    size: Size,
    *,
    seed: int = 0,
    crowd_share: float = 0.02,
    score_digits: int = 9,
    image_ids: list[Any] | None = None,
) -> tuple[COCO, list[dict[str, Any]]]:
    """A made-up test set with 0 to 16 objects an image, and detections of it.

    A third of the detections are copies of objects, moved a little; the others stand anywhere.

    Args:
        size: how many of what.
        seed: of all that is drawn.
        crowd_share: how many of the objects are crowds.
        score_digits: decimals of the scores; 1 gives many ties.
        image_ids: instead of 1, 2, 3 …

    Returns:
        The ground truth, and entries of COCO's results format in the order of the images.
    """
    rng = np.random.default_rng(seed)
    image_ids = image_ids or list(range(1, size.images + 1))
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in image_ids:
        count = int(rng.integers(0, 2 * OBJECTS_PER_IMAGE + 1))
        boxes, classes = _random_boxes(rng, count), rng.integers(1, size.classes + 1, count)
        fills, crowds = rng.uniform(0.4, 1, count), rng.random(count) < crowd_share
        for box, label, fill, crowd in zip(boxes, classes, fills, crowds, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(fill * box[2] * box[3]),
                    "iscrowd": int(crowd),
                }
            )
        found = _random_boxes(rng, size.detections)
        labels = rng.integers(1, size.classes + 1, size.detections)
        copied = rng.random(size.detections) < (1 / 3 if count else 0)
        source = rng.integers(0, max(count, 1), size.detections)[copied]
        found[copied] = boxes[source] * rng.normal(1, 0.06, (len(source), 4))
        labels[copied] = classes[source]
        scores = rng.random(size.detections).round(score_digits)
        detections += [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(
                labels.tolist(), found.tolist(), scores.tolist(), strict=True
            )
        ]
    width, height = IMAGE_SIZE
    coco_api = COCO()
    coco_api.dataset = {
        "images": [{"id": i, "width": width, "height": height} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, size.classes + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco_api.createIndex()
    return coco_api, detections


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4), x, y, width, height: sides of 6 to 400 px, so that all of COCO's sizes occur."""
    sides = np.exp(rng.uniform(np.log(6), np.log(400), (count, 2)))
    corners = rng.uniform(0, np.maximum(np.array(IMAGE_SIZE) - sides, 1))
    return np.concatenate([corners, sides], axis=1)


def _pycocotools(coco_api: COCO, detections: list[dict[str, Any]]) -> Any:
    # loadRes writes into its argument
    return _run(COCOeval(coco_api, coco_api.loadRes(copy.deepcopy(detections)), "bbox"))


def _faster_coco_eval(coco_api: COCO, detections: list[dict[str, Any]]) -> Any:
    import faster_coco_eval

    ground_truth = faster_coco_eval.COCO(coco_api.dataset)
    detected = ground_truth.loadRes(copy.deepcopy(detections))
    return _run(faster_coco_eval.COCOeval_faster(ground_truth, detected, "bbox"))


def _run(coco_eval: Any) -> Any:
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval


def _silent(evaluate: Evaluate, *data: Any) -> Candidate:
    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate(*data)

    return run
