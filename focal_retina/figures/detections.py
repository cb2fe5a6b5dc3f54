"""Images with their objects on the left and with what a model detected on the right."""

import colorsys
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from matplotlib.colors import to_hex

from ..data import read_image
from ..drawing import Outline, draw_outlines, save_sheet

_logger = logging.getLogger(__name__)

_MAX_IMAGES = 12
_PICTURES_PER_ROW = 6
_SIDE = 320  # pixels of an image's longer side
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread hues evenly, for any number of classes


def draw_detections(dataset_name: str, results_json: Path, out_png: Path) -> None:
    """Draw images of a data set, spread evenly over it, with their objects and their detections.

    As many detections are shown as the data set has objects, those of the highest scores. A class
    has one colour throughout. ``results_json`` is in COCO's results format.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    predictions = json.loads(results_json.read_text())
    threshold = break_even_threshold(predictions, records)
    label_of = metadata.get("thing_dataset_id_to_contiguous_id")
    first = int(metadata.get("evaluator_type") == "lvis")  # whose evaluator counts from 1

    def outline(label: int, box: Iterable[float], mode: BoxMode, score: str = "") -> Outline:
        color = to_hex(colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.7, 1))
        corners = BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS)
        return Outline(corners, color, metadata.thing_classes[label] + score)

    by_image = defaultdict(list)
    for x in sorted(predictions, key=lambda x: x["score"]):  # the best is drawn last, on top
        if x["score"] >= threshold:
            category = x["category_id"]
            label = category - first if label_of is None else label_of[category]
            found = outline(label, x["bbox"], BoxMode.XYWH_ABS, f" {x['score']:.2f}")
            by_image[x["image_id"]].append(found)

    count = min(_MAX_IMAGES, len(records))
    pictures = []
    for record in (records[i * len(records) // count] for i in range(count)):
        try:
            image = read_image(record["file_name"], format="RGB")
        except Exception as error:  # of Pillow's decoders; the evaluation may have left it out
            _logger.warning("%s is not drawn: %s", record["file_name"], error)
            continue
        annotations = record.get("annotations", ())
        objects = [outline(x["category_id"], x["bbox"], x["bbox_mode"]) for x in annotations]
        for outlines in (objects, by_image[record["image_id"]]):
            pictures.append(draw_outlines(image, outlines, longer_side=_SIDE))
    title = f"{dataset_name}: objects, and detections with a score of {threshold:.2f} or more"
    save_sheet(pictures, title, out_png, columns=_PICTURES_PER_ROW, longer_side=_SIDE)


def break_even_threshold(
    predictions: Sequence[Mapping[str, Any]], records: Iterable[Mapping[str, Any]]
) -> float:
    """The score at which there are as many detections as objects, so that recall = precision; the
    lowest score if there are fewer detections, and 1 if there is no object."""
    annotations = itertools.chain.from_iterable(x.get("annotations", ()) for x in records)
    num_objects = sum(not x.get("iscrowd", 0) for x in annotations)
    scores = sorted((x["score"] for x in predictions), reverse=True)[:num_objects]
    return scores[-1] if scores else 1.0
