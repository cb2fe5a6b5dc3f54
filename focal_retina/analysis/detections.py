"""Detections beside ground truth, image by image: what a picture sheet shows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.structures import BoxMode


class LabeledBox(NamedTuple):
    """A box (x0, y0, x1, y1) in pixels of the original image; ground truth has no score."""

    label: int
    box: tuple[float, float, float, float]
    score: float | None = None


class Comparison(NamedTuple):
    """One image: its file, its width and height, its ground truth, its detections by score."""

    file_name: str
    size: tuple[int, int]
    ground_truth: list[LabeledBox]
    detections: list[LabeledBox]


def break_even_threshold(
    predictions: Sequence[Mapping[str, Any]], dataset_dicts: Sequence[Mapping[str, Any]]
) -> float:
    """The score at which there are as many detections as objects, so that recall = precision.

    It is the lowest score if there are fewer detections, and 1 if there is no object.
    """
    num_objects = sum(
        not annotation.get("iscrowd", 0)
        for record in dataset_dicts
        for annotation in record.get("annotations", ())
    )
    scores = sorted((p["score"] for p in predictions), reverse=True)[:num_objects]
    return scores[-1] if scores else 1.0


def compare_images(
    dataset_dicts: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    dataset_id_to_contiguous_id: Mapping[int, int] | None,
    *,
    max_images: int,
    score_threshold: float,
) -> list[Comparison]:
    """Put detections beside ground truth, for images spread evenly over the data set.

    Args:
        dataset_dicts: records in Detectron2's standard format, their labels contiguous.
        predictions: entries of COCO's results format, as COCOEvaluator writes them: image_id,
            category_id, bbox (x, y, width, height), score.
        dataset_id_to_contiguous_id: from the predictions' category ids to labels; None: the same.
        max_images: how many images at most.
        score_threshold: detections with a lower score are left out.
    """
    by_image = defaultdict(list)
    for prediction in predictions:
        if prediction["score"] >= score_threshold:
            by_image[prediction["image_id"]].append(prediction)

    count = min(max_images, len(dataset_dicts))
    chosen = [dataset_dicts[i * len(dataset_dicts) // count] for i in range(count)]
    return [
        Comparison(
            file_name=record["file_name"],
            size=(record["width"], record["height"]),
            ground_truth=[
                LabeledBox(a["category_id"], _corners(a["bbox"], a["bbox_mode"]))
                for a in record.get("annotations", ())
            ],
            detections=[
                LabeledBox(
                    p["category_id"]
                    if dataset_id_to_contiguous_id is None
                    else dataset_id_to_contiguous_id[p["category_id"]],
                    _corners(p["bbox"], BoxMode.XYWH_ABS),
                    p["score"],
                )
                for p in sorted(by_image[record["image_id"]], key=lambda p: -p["score"])
            ],
        )
        for record in chosen
    ]


def _corners(box: Sequence[float], mode: BoxMode) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS)
    return x0, y0, x1, y1
