"""Our COCO box metrics beside pycocotools', on the CPU, from the list of detections to the 12
numbers. pycocotools needs minutes a call at the larger size, and is called four times more often
than ``--runs`` says."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focal_retina.evaluation.box_metrics import evaluate_boxes

from .inputs import OBJECTS_PER_IMAGE
from .timing import Case

IMAGE_SIZE = (640, 480)  # width, height


class Size(NamedTuple):
    """Of a test set and of what a model finds in it."""

    images: int
    detections: int  # an image
    classes: int


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    for size in sizes:
        data = make_data(size)
        title = f"{size.images:,} images × {size.detections} detections × {size.classes} classes"
        ours, peer = (partial(_silently, x, *data) for x in (evaluate_boxes, _pycocotools))
        yield title, {"ours": ours, "pycocotools": peer}


def make_data(
    size: Size,
    *,
    seed: int = 0,
    crowd_share: float = 0.02,
    score_digits: int = 9,
    image_ids: Sequence[Any] = (),
) -> tuple[COCO, list[dict[str, Any]]]:
    """A made-up test set with 0 to 16 objects an image, and detections in COCO's results format, in
    the order of the images: a third are objects moved a little, the others stand anywhere.
    ``crowd_share`` of the objects are crowds; ``score_digits`` 1 gives many ties."""
    rng = np.random.default_rng(seed)
    image_ids = image_ids or range(1, size.images + 1)
    annotations, detections = list[dict[str, Any]](), list[dict[str, Any]]()
    for image_id in image_ids:
        boxes = _random_boxes(rng, int(rng.integers(0, 2 * OBJECTS_PER_IMAGE + 1)))
        labels = rng.integers(1, size.classes + 1, len(boxes))
        areas = rng.uniform(0.4, 1, len(boxes)) * boxes[:, 2] * boxes[:, 3]
        crowds = (rng.random(len(boxes)) < crowd_share).astype(int)
        objects = {"bbox": boxes, "category_id": labels, "area": areas, "iscrowd": crowds}
        annotations += _records(image_id, **objects)

        found = _random_boxes(rng, size.detections)
        found_labels = rng.integers(1, size.classes + 1, size.detections)
        if len(boxes):
            copied = rng.random(size.detections) < 1 / 3
            source = rng.integers(0, len(boxes), size.detections)[copied]
            found[copied] = boxes[source] * rng.normal(1, 0.06, (len(source), 4))
            found_labels[copied] = labels[source]
        scores = rng.random(size.detections).round(score_digits)
        detections += _records(image_id, bbox=found, category_id=found_labels, score=scores)
    width, height = IMAGE_SIZE
    coco_api = COCO()
    coco_api.dataset = {
        "images": [{"id": i, "width": width, "height": height} for i in image_ids],
        "annotations": [{"id": i + 1, **x} for i, x in enumerate(annotations)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, size.classes + 1)],
    }
    _silently(coco_api.createIndex)
    return coco_api, detections


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4), x, y, width, height: sides of 6 to 400 px, so that all of COCO's sizes occur."""
    sides = np.exp(rng.uniform(np.log(6), np.log(400), (count, 2)))
    corners = rng.uniform(0, np.maximum(np.array(IMAGE_SIZE) - sides, 1))
    return np.concatenate([corners, sides], axis=1)


def _records(image_id: Any, **columns: np.ndarray) -> list[dict[str, Any]]:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"image_id": image_id, **dict(zip(columns, row, strict=True))} for row in rows]


def _pycocotools(coco_api: COCO, detections: list[dict[str, Any]]) -> None:
    # loadRes writes into its argument
    coco_eval = COCOeval(coco_api, coco_api.loadRes(copy.deepcopy(detections)), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()


def _silently(function: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)
