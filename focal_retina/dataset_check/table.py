"""A data set as columns, which checks and statistics read at array speed.

Shapes: N images, M annotations, K classes.
"""

import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data.coco import read_coco_json
from ..files import annotation_file
from .image_files import ImageFiles

OVERHANG = 1.0  # pixels by which a box may reach over the border, which rounding explains
_MOSTLY_OUTSIDE = 0.1  # share of boxes over the border from which on they have another format
_MOST = 0.95  # share of boxes that fit another format


class NotRecordsError(ValueError):
    """The data set is not a list of records, but such as a torch Dataset."""


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Images, annotations and categories, and columns of them."""

    source: str  # the annotation file, or the data set's name where it has none
    category_ids: list[int]  # ascending, (K,); the position is the class
    class_names: list[str]
    images: list[dict[str, Any]]  # as they stand in the file, (N,)
    image_ids: list[int | str]
    file_names: list[str]  # full paths
    annotations: list[dict[str, Any]]  # (M,)
    image_index: np.ndarray  # int64 (M,): the annotation's image, -1 if it is not listed
    class_index: np.ndarray  # int64 (M,), -1 if the category is not listed
    boxes: np.ndarray  # float64 (M, 4): x, y, width, height in pixels of the image
    files: ImageFiles = field(default_factory=lambda: ImageFiles([], {}, {}, [], {}))
    trained: Sequence["AnnotationTable"] = ()  # the sets that a set is compared with

    @cached_property
    def annotation_ids(self) -> list[int | str]:
        return [x.get("id", number) for number, x in enumerate(self.annotations, 1)]

    @cached_property
    def is_crowd(self) -> np.ndarray:
        return np.array([bool(x.get("iscrowd", 0)) for x in self.annotations], dtype=bool)

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """float64 (N, 2): width, height; NaN where not annotated."""
        return _matrix([(x.get("width", np.nan), x.get("height", np.nan)) for x in self.images], 2)

    @cached_property
    def sizes_of_images(self) -> np.ndarray:
        """float64 (M, 2): width and height of each annotation's image; NaN where unknown."""
        return np.vstack([self.image_sizes, np.full((1, 2), np.nan)])[self.image_index]

    @cached_property
    def class_counts(self) -> np.ndarray:
        """Objects of each class, int64 (K,); crowds and unknown classes do not count."""
        counted = ~self.is_crowd & (self.class_index >= 0)
        return np.bincount(self.class_index[counted], minlength=len(self.class_names))

    @cached_property
    def empty_images(self) -> np.ndarray:
        """Indices of the images without objects, int64."""
        return np.setdiff1d(np.arange(len(self.image_ids)), self.image_index[~self.is_crowd])


def load_table(name: str) -> AnnotationTable:
    """A registered data set: a COCO file as it is, with everything that Detectron2's loader would
    drop or refuse; of others the records. ValueError: a record lacks what Detectron2's format asks
    for; and as :func:`.read_coco_json`."""
    metadata = MetadataCatalog.get(name)
    json_file, image_root = annotation_file(name), metadata.get("image_root")
    if metadata.get("evaluator_type") == "coco" and json_file and image_root is not None:
        return _coco_table(json_file, image_root)
    records = DatasetCatalog.get(name)
    if not isinstance(records, list):
        raise NotRecordsError(f"data set {name!r} is a {type(records).__name__}, not a list")
    if metadata.get("thing_classes") is None:
        raise ValueError(f"data set {name!r}: its metadata lack thing_classes, the class names")
    try:
        return record_table(name, records, metadata.thing_classes)
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"data set {name!r}: a record lacks file_name or annotations, or one of these bbox, "
            f"bbox_mode or category_id, or it can't be read ({error!r}); see Detectron2's "
            '"Use Custom Datasets"'
        ) from error


def _coco_table(json_file: str, image_root: str) -> AnnotationTable:
    content = read_coco_json(json_file)
    images, annotations = content["images"], content["annotations"]
    image_ids = [x["id"] for x in images]
    category_ids = [x["id"] for x in content["categories"]]
    return AnnotationTable(
        source=json_file,
        category_ids=category_ids,
        class_names=[x["name"] for x in content["categories"]],
        images=images,
        image_ids=image_ids,
        file_names=[os.path.join(image_root, x["file_name"]) for x in images],
        annotations=annotations,
        image_index=_positions([x["image_id"] for x in annotations], image_ids),
        class_index=_positions([x["category_id"] for x in annotations], category_ids),
        boxes=_matrix([x["bbox"] for x in annotations], 4),
    )


def record_table(
    source: str, records: list[dict[str, Any]], class_names: Sequence[str]
) -> AnnotationTable:
    """The table of records in Detectron2's format, boxes of whatever ``bbox_mode``."""
    annotations = [x for record in records for x in record["annotations"]]
    boxes = _matrix([x["bbox"] for x in annotations], 4)
    modes = np.array([x["bbox_mode"] for x in annotations], dtype=np.int64)
    for mode in np.unique(modes):
        boxes[modes == mode] = BoxMode.convert(boxes[modes == mode], mode, BoxMode.XYWH_ABS)
    classes = range(len(class_names))
    return AnnotationTable(
        source=source,
        category_ids=list(classes),
        class_names=list(class_names),
        images=records,
        image_ids=[x.get("image_id", index) for index, x in enumerate(records)],
        file_names=[os.fspath(x["file_name"]) for x in records],
        annotations=annotations,
        image_index=np.repeat(np.arange(len(records)), [len(x["annotations"]) for x in records]),
        class_index=_positions([int(x["category_id"]) for x in annotations], classes),
        boxes=boxes,
    )


def _positions(values: list, ids: Sequence) -> np.ndarray:
    """Where each stands among the ids, int64; -1 where it does not."""
    position = {x: index for index, x in enumerate(ids)}
    return np.array([position.get(x, -1) for x in values], dtype=np.int64)


def _matrix(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)


def guess_format(boxes: np.ndarray, image_sizes: np.ndarray) -> str | None:
    """What most boxes look like that are not x, y, width, height in pixels; None if they may be."""
    known = np.isfinite(boxes).all(axis=1) & np.isfinite(image_sizes).all(axis=1)
    start, extent, sizes = boxes[known, :2], boxes[known, 2:], image_sizes[known]
    if len(start) == 0:
        return None
    slack = OVERHANG
    are_small = (np.abs(boxes[known]) <= 1).all(axis=1) & (sizes > 2).all(axis=1)
    if are_fractions := are_small.mean() > 0.5:
        start, extent, sizes, slack = start[are_small], extent[are_small], np.ones((1, 2)), 0.01
    low, high = start - extent / 2 + slack, start + extent / 2 - slack
    formats = {
        "[x, y, width, height]": start + extent <= sizes + slack,
        "[center x, center y, width, height]": (low >= 0) & (high <= sizes),
        "[x1, y1, x2, y2]": (extent > start) & (extent <= sizes + slack),
    }
    shares = {name: fits.all(axis=1).mean() for name, fits in formats.items()}
    fitting = " or ".join(name for name, share in shares.items() if share > _MOST)
    if are_fractions:
        return f"{fitting or 'numbers'} in fractions of the image's size"
    outside = 1 - shares["[x, y, width, height]"]
    if outside <= _MOSTLY_OUTSIDE or not fitting:
        return None
    return f"{fitting}: read as [x, y, width, height], {outside:.0%} leave their image"


def why_missing(file_name: str) -> str:
    """That there is no such file, and the name of the one that may be meant."""
    plain = Path(urllib.parse.unquote(file_name.replace("\\", "/")))
    parts = plain.parts
    shorter = [Path(*parts[:i], *parts[i + 1 :]) for i in range(len(parts) - 2, 0, -1)]
    suffixes = [plain.with_suffix(change(plain.suffix)) for change in (str.lower, str.upper)]
    meant = next((path for path in [plain, *suffixes, *shorter] if os.path.isfile(path)), None)
    return f"no such file, but {meant}: correct file_name" if meant else "no such file"
