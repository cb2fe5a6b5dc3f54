"""The annotations of a data set as columns, which checks and statistics read at array speed.

Shapes: N images, M annotations, K classes.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..coco_json import read_coco_json


class NotRecordsError(ValueError):
    """A data set that is no list of records, such as a torch Dataset."""


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Columns over images, annotations and categories, in the file's order."""

    source: str
    """The annotation file, or the data set's name where it has none."""
    category_ids: list[int]
    """Ascending, (K,); the position is the class."""
    class_names: list[str]
    image_ids: list[int | str]
    file_names: list[str]
    """Full paths, (N,)."""
    image_sizes: np.ndarray
    """float64 (N, 2): width, height; NaN where not annotated."""
    annotation_ids: list[int | str]
    image_index: np.ndarray
    """int64 (M,): the annotation's image, -1 if it is not listed."""
    annotated_categories: list[int]
    """Category ids as they stand in the file, (M,)."""
    class_index: np.ndarray
    """int64 (M,), -1 if the category is not listed."""
    boxes: np.ndarray
    """float64 (M, 4): x, y, width, height in pixels of the image."""
    is_crowd: np.ndarray
    """bool (M,)"""
    has_no_polygon: np.ndarray
    """bool (M,): segmented, but no polygon has the three points that Detectron2 asks for."""


def coco_source(name: str) -> tuple[str, str] | None:
    """Annotation file and image folder of a registered set in COCO's format, else None."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco" or metadata.get("json_file") is None:
        return None
    return metadata.json_file, metadata.image_root


def is_generated(name: str) -> bool:
    """Whether this package writes the set, so that its files need not be there yet."""
    return bool(MetadataCatalog.get(name).get("generated", False))


def load_table(name: str) -> AnnotationTable:
    """Read a registered data set's annotations.

    COCO files are read as they are, with everything that Detectron2's loader would drop or refuse.
    Of other sets, the records that their loader returns are taken.

    Raises:
        ValueError: the file is not COCO json, or a record lacks what Detectron2's format asks for.
        NotRecordsError: there is no such file, and the loader returns no list.
        FileNotFoundError: there is no annotation file.
    """
    source = coco_source(name)
    if source is None or is_generated(name):
        records = DatasetCatalog.get(name)  # writes a generated set's files
    if source is not None:
        return _table_of_coco(*source)
    if not isinstance(records, list):
        raise NotRecordsError(f"data set {name!r} is a {type(records).__name__}, not a list")
    return _table_of_records(name, records)


def _table_of_coco(json_file: str, image_root: str) -> AnnotationTable:
    content = read_coco_json(json_file)
    images, annotations = content["images"], content["annotations"]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    category_ids = [category["id"] for category in categories]
    image_of = {image["id"]: index for index, image in enumerate(images)}
    class_of = {category_id: index for index, category_id in enumerate(category_ids)}
    return AnnotationTable(
        source=json_file,
        category_ids=category_ids,
        class_names=[category["name"] for category in categories],
        image_ids=[image["id"] for image in images],
        file_names=[os.path.join(image_root, image["file_name"]) for image in images],
        image_sizes=_matrix([(x["width"], x["height"]) for x in images], 2),
        annotation_ids=[x["id"] for x in annotations],
        image_index=_integers([image_of.get(x["image_id"], -1) for x in annotations]),
        annotated_categories=[x["category_id"] for x in annotations],
        class_index=_integers([class_of.get(x["category_id"], -1) for x in annotations]),
        boxes=_matrix([x["bbox"] for x in annotations], 4),
        is_crowd=np.array([bool(x.get("iscrowd", 0)) for x in annotations], dtype=bool),
        has_no_polygon=np.array([_has_no_polygon(x) for x in annotations], dtype=bool),
    )


def _has_no_polygon(annotation: dict[str, Any]) -> bool:
    polygons = annotation.get("segmentation")
    if not polygons or isinstance(polygons, dict):
        return False
    return not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)


def _table_of_records(name: str, records: list[dict[str, Any]]) -> AnnotationTable:
    class_names = MetadataCatalog.get(name).get("thing_classes")
    if class_names is None:
        raise ValueError(f"data set {name!r}: its metadata lack thing_classes, the class names")
    annotations: list[dict[str, Any]] = []
    image_index: list[int] = []
    for index, record in enumerate(records):
        if "file_name" not in record or "annotations" not in record:
            raise ValueError(
                f"data set {name!r}: record {index} lacks file_name or annotations; Detectron2's "
                '"Use Custom Datasets" tells what a record holds'
            )
        annotations += record["annotations"]
        image_index += [index] * len(record["annotations"])
    try:
        boxes = [
            BoxMode.convert(list(x["bbox"]), BoxMode(x["bbox_mode"]), BoxMode.XYWH_ABS)
            for x in annotations
        ]
        categories = [int(x["category_id"]) for x in annotations]
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"data set {name!r}: an annotation lacks bbox, bbox_mode or category_id, or has one "
            f"that can't be read ({error!r})"
        ) from error
    num_classes = len(class_names)
    return AnnotationTable(
        source=name,
        category_ids=list(range(num_classes)),
        class_names=list(class_names),
        image_ids=[x.get("image_id", index) for index, x in enumerate(records)],
        file_names=[os.fspath(x["file_name"]) for x in records],
        image_sizes=_matrix(
            [(x.get("width", np.nan), x.get("height", np.nan)) for x in records], 2
        ),
        annotation_ids=list(range(1, len(annotations) + 1)),
        image_index=_integers(image_index),
        annotated_categories=categories,
        class_index=_integers([c if 0 <= c < num_classes else -1 for c in categories]),
        boxes=_matrix(boxes, 4),
        is_crowd=np.array([bool(x.get("iscrowd", 0)) for x in annotations], dtype=bool),
        has_no_polygon=np.zeros(len(annotations), dtype=bool),
    )


def _matrix(rows: list, width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _integers(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)
