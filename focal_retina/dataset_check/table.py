"""A data set as columns, which checks and statistics read at array speed, and its image files.

Shapes: N images, M annotations, K classes.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from ..data.coco import read_coco_json
from ..data.images import has_16_bits, read_image
from ..evaluation.coco_evaluator import has_false_area


class NotRecordsError(ValueError):
    """A data set that is not a list of records, such as a torch Dataset."""


@dataclass(frozen=True)
class ImageFiles:
    """What is known of a data set's image files, by the images' index."""

    missing: list[int] = field(default_factory=list)  # images without a regular file
    unreadable: dict[int, str] = field(default_factory=dict)  # why an image cannot be decoded
    sizes: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # width, height of those that can
    deep: list[int] = field(default_factory=list)  # images of 16 bits

    @property
    def num_decoded(self) -> int:
        return len(self.unreadable) + len(self.sizes)


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Columns over images, annotations and categories."""

    source: str  # the annotation file, or the data set's name where it has none
    category_ids: list[int]  # ascending, (K,); the position is the class
    class_names: list[str]
    image_ids: list[int | str]
    file_names: list[str]  # full paths, (N,)
    image_sizes: np.ndarray  # float64 (N, 2): width, height; NaN where not annotated
    annotation_ids: list[int | str]
    annotated_images: list[int | str]  # image ids as they stand in the file, (M,)
    image_index: np.ndarray  # int64 (M,): the annotation's image, -1 if it is not listed
    annotated_categories: list[int]  # category ids as they stand in the file, (M,)
    class_index: np.ndarray  # int64 (M,), -1 if the category is not listed
    boxes: np.ndarray  # float64 (M, 4): x, y, width, height in pixels of the image
    is_crowd: np.ndarray  # bool (M,)
    has_no_polygon: np.ndarray  # bool (M,): no polygon has the 3 points that Detectron2 asks for
    has_false_area: np.ndarray  # bool (M,): there is an "area" that can't be one
    files: ImageFiles = field(default_factory=ImageFiles)

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


def is_generated(name: str) -> bool:
    """Whether this package writes the set, so that its files need not be there yet."""
    return bool(MetadataCatalog.get(name).get("generated", False))


def load_table(name: str) -> AnnotationTable:
    """Read a registered data set: a COCO file as it is, with everything that Detectron2's loader
    would drop or refuse; of other sets the records that their loader returns. ValueError: a record
    lacks what Detectron2's format asks for; and as :func:`.read_coco_json`.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if metadata.get("evaluator_type") == "coco" and json_file and not is_generated(name):
        return _coco_table(json_file, metadata.image_root)
    records = DatasetCatalog.get(name)
    if not isinstance(records, list):
        raise NotRecordsError(f"data set {name!r} is a {type(records).__name__}, not a list")
    if metadata.get("thing_classes") is None:
        raise ValueError(f"data set {name!r}: its metadata lack thing_classes, the class names")
    for index, record in enumerate(records):
        if not {"file_name", "annotations"} <= record.keys():
            raise ValueError(
                f"data set {name!r}: record {index} lacks file_name or annotations; Detectron2's "
                '"Use Custom Datasets" says what a record holds'
            )
    try:
        return record_table(name, records, metadata.thing_classes)
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"data set {name!r}: an annotation lacks bbox, bbox_mode or category_id, or has one "
            f"that can't be read ({error!r})"
        ) from error


def _coco_table(json_file: str, image_root: str) -> AnnotationTable:
    content = read_coco_json(json_file)
    index_of = {image["id"]: index for index, image in enumerate(content["images"])}
    annotated_images = [x["image_id"] for x in content["annotations"]]
    return _build_table(
        json_file,
        {x["id"]: x["name"] for x in content["categories"]},
        [{**x, "file_name": os.path.join(image_root, x["file_name"])} for x in content["images"]],
        content["annotations"],
        image_ids=[x["id"] for x in content["images"]],
        annotated_images=annotated_images,
        image_index=np.array([index_of.get(x, -1) for x in annotated_images], dtype=np.int64),
        boxes=_matrix([x["bbox"] for x in content["annotations"]], 4),
    )


def record_table(
    source: str, records: list[dict[str, Any]], class_names: Sequence[str]
) -> AnnotationTable:
    """The table of records in Detectron2's format, boxes of whatever ``bbox_mode``."""
    annotations = [x for record in records for x in record["annotations"]]
    boxes = _matrix([x["bbox"] for x in annotations], 4)
    modes = np.array([x["bbox_mode"] for x in annotations], dtype=np.int64)
    for mode in set(modes.tolist()):
        rows = modes == mode
        boxes[rows] = BoxMode.convert(boxes[rows], BoxMode(mode), BoxMode.XYWH_ABS)
    image_ids = [x.get("image_id", index) for index, x in enumerate(records)]
    image_index = np.repeat(np.arange(len(records)), [len(x["annotations"]) for x in records])
    return _build_table(
        source,
        dict(enumerate(class_names)),
        records,
        annotations,
        image_ids=image_ids,
        annotated_images=[image_ids[i] for i in image_index],
        image_index=image_index,
        boxes=boxes,
    )


def _build_table(
    source: str,
    categories: dict[int, str],  # names by the ids that the annotations have
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    **columns: Any,
) -> AnnotationTable:
    category_ids = sorted(categories)
    class_of = {category_id: index for index, category_id in enumerate(category_ids)}
    annotated = [int(x["category_id"]) for x in annotations]
    return AnnotationTable(
        source=source,
        category_ids=category_ids,
        class_names=[categories[x] for x in category_ids],
        file_names=[os.fspath(x["file_name"]) for x in images],
        image_sizes=_matrix([(x.get("width", np.nan), x.get("height", np.nan)) for x in images], 2),
        annotation_ids=[x.get("id", number) for number, x in enumerate(annotations, 1)],
        annotated_categories=annotated,
        class_index=np.array([class_of.get(x, -1) for x in annotated], dtype=np.int64),
        is_crowd=_bools(bool(x.get("iscrowd", 0)) for x in annotations),
        has_no_polygon=_bools(_has_no_polygon(x.get("segmentation")) for x in annotations),
        has_false_area=has_false_area(annotations) & _bools("area" in x for x in annotations),
        **columns,
    )


def _has_no_polygon(segmentation: Any) -> bool:
    if not isinstance(segmentation, list) or not segmentation:
        return False
    return not any(len(x) >= 6 and len(x) % 2 == 0 for x in segmentation)


def _bools(values: Iterable[bool]) -> np.ndarray:
    return np.fromiter(values, dtype=bool)


def _matrix(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)


def inspect_images(file_names: list[str], num_decoded: int) -> ImageFiles:
    """Look for every file; URLs count as present. Decode ``num_decoded`` images, drawn with a fixed
    seed, and every empty file; below 0: all.
    """
    file_sizes = [1 if "://" in name else _file_size(name) for name in file_names]
    sample = [index for index, size in enumerate(file_sizes) if size is not None]
    if 0 <= num_decoded < len(sample):
        drawn = np.random.default_rng(0).choice(sample, num_decoded, replace=False)
        sample = sorted({*drawn.tolist(), *(i for i, size in enumerate(file_sizes) if size == 0)})
    files = ImageFiles([index for index, size in enumerate(file_sizes) if size is None])
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without the GIL
    try:
        outcomes = pool.map(_decode, [file_names[i] for i in sample])
        progress = tqdm(outcomes, "decoding images", len(sample), delay=5, unit="image")
        for index, (size, depth) in zip(sample, progress, strict=True):
            if isinstance(size, str):
                files.unreadable[index] = size
            else:
                files.sizes[index] = size
                files.deep.extend([index] * (depth > 8))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too
    return files


def _file_size(file_name: str) -> int | None:
    """Bytes; None where there is no regular file."""
    try:
        status = os.stat(file_name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    # Opening a pipe or a device could wait forever.
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _decode(file_name: str) -> tuple[tuple[int, int] | str, int]:
    """Width and height of an image, or why it cannot be decoded; and its bits."""
    try:
        height, width = read_image(file_name).shape[:2]  # as the mapper will, turned by its EXIF
        with PathManager.open(file_name, "rb") as file:
            return (width, height), 16 if has_16_bits(Image.open(file)) else 8
    except Exception as error:  # Pillow's decoders raise whatever their format suggests
        return " ".join(f"{type(error).__name__}: {error}".split()), 0
