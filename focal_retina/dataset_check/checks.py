"""What can be wrong with a data set: one decorated function a check.

Reports quote the docstring, which says why the fault matters. Degrees:

- ``error``: the training would stop in its middle, or learn from nonsense.
- ``warning``: the model copes, but the user should know.
- ``tolerated``: a warning up to 1% of the objects, as slips of an annotator; an error beyond.
- ``needed``: an error in a set that is trained on, and a warning in one that is only evaluated.
- ``note``: a fact of the data set, in the report only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.coco_evaluator import has_false_area
from .table import OVERHANG, AnnotationTable, guess_format, why_missing

_RARE = 0.02  # of the most frequent class's objects
_THIN = 1e-5  # Detectron2's mapper drops boxes up to this wide or high

Indices = Sequence[int] | np.ndarray  # of faulty entries
Describe = Callable[[int], str]  # what to say of each, such as "a.jpg, image 3, 0×0"
Faults = tuple[Indices, Describe]


class Check(NamedTuple):
    name: str
    meaning: str
    title: str
    degree: str
    skipped: str  # what DATA_CHECK.MODE skip removes: "object", "image" or nothing
    find: Callable[[AnnotationTable], Faults]


CHECKS: dict[str, Check] = {}  # in the order of a report
_BOX_TESTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}


def check(title: str, degree: str, *, skipped: str = "", boxes: bool = False) -> Callable:
    """Register a check; one of ``boxes`` makes a mask of the arguments of :func:`box_faults`."""

    def register(function: Callable) -> Callable:
        name, find = function.__name__, function
        if boxes:
            _BOX_TESTS[name] = function

            def find(table: AnnotationTable) -> Faults:
                return of_annotations(table, box_faults(table.boxes, table.sizes_of_images)[name])

        CHECKS[name] = Check(name, function.__doc__ or "", title, degree, skipped, find)
        return function

    return register


def box_faults(boxes: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Sort boxes (M, 4) by the first box check that they fail: a mask for each check, bool (M,).
    Where an image's size (M, 2) is NaN, as unknown, no box is outside."""
    rest, faults = np.ones(len(boxes), dtype=bool), {}
    with np.errstate(invalid="ignore", over="ignore"):
        for name, is_faulty in _BOX_TESTS.items():
            faults[name] = rest & is_faulty(boxes, image_sizes)
            rest &= ~faults[name]
    return faults


@check("sets without images", "error")
def no_image(table: AnnotationTable) -> Faults:
    """Detectron2 stops at one"""
    return [] if len(table.image_ids) else [0], lambda _: table.source


@check("image sizes that are not positive", "error", skipped="image")
def image_size(table: AnnotationTable) -> Faults:
    """boxes can't be placed in them"""
    wrong = np.flatnonzero((table.image_sizes <= 0).any(axis=1))
    return of_images(table, wrong, lambda i: "{:g}×{:g}".format(*table.image_sizes[i]))


@check("images without a file", "error", skipped="image")
def missing_image(table: AnnotationTable) -> Faults:
    """reading one would stop the training"""
    return of_images(table, table.files.missing, lambda i: why_missing(table.file_names[i]))


@check("images that can't be decoded", "error", skipped="image")
def unreadable_image(table: AnnotationTable) -> Faults:
    """reading one would stop the training"""
    return of_images(table, list(table.files.unreadable), table.files.unreadable.__getitem__)


@check("images of 16 bits", "warning")
def deep_image(table: AnnotationTable) -> Faults:
    """their upper 8 bits are read: stretch dark ones before the training"""
    return of_images(table, table.files.deep)


@check("images whose size is not the annotated one", "error", skipped="image")
def wrong_size(table: AnnotationTable) -> Faults:
    """their boxes belong to another scale or orientation; Detectron2 stops at them"""
    annotated, sizes = table.image_sizes, table.files.sizes
    is_known = np.isfinite(annotated).all(axis=1)
    wrong = [i for i, size in sizes.items() if is_known[i] and tuple(annotated[i]) != size]
    text = "annotated as {:g}×{:g}, is {}×{}"
    return of_images(table, wrong, lambda i: text.format(*annotated[i], *sizes[i]))


@check("annotation id 0", "warning")
def annotation_id_zero(table: AnnotationTable) -> Faults:
    """counted here as any other; pycocotools would count the object as missed"""
    is_zero = [x == 0 for x in table.annotation_ids]
    return of_annotations(table, is_zero, lambda _: "number them from 1")


@check("annotations of images that are not listed", "error", skipped="object")
def unknown_image(table: AnnotationTable) -> Faults:
    """Detectron2 drops these objects"""
    listed = {str(x): x for x in table.image_ids}

    def why(index: int) -> str:
        image_id = table.annotations[index]["image_id"]
        twin = listed.get(str(image_id))
        hint = "" if twin is None else f", but {twin!r} is: write both as integers"
        return f"its image_id {image_id!r} is not listed{hint}"

    return of_annotations(table, table.image_index < 0, why)


@check("annotations of categories that are not listed", "error")
def unknown_category(table: AnnotationTable) -> Faults:
    """Detectron2 stops at them"""
    text, entries = "category {category_id} is not listed", table.annotations
    return of_annotations(table, table.class_index < 0, lambda i: text.format_map(entries[i]))


@check("boxes with NaN or infinite numbers", "error", skipped="object", boxes=True)
def box_not_finite(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they make the loss NaN"""
    return ~np.isfinite(boxes).all(axis=1)


@check("boxes of negative width or height", "error", skipped="object", boxes=True)
def negative_size(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they match no anchor: the object would be trained as background"""
    return np.any(boxes[:, 2:] < 0, axis=1)


@check("boxes without area", "tolerated", skipped="object", boxes=True)
def zero_area(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they match no anchor: the object is trained as background"""
    return np.any(boxes[:, 2:] <= _THIN, axis=1)


@check("boxes wholly outside their image", "error", skipped="object", boxes=True)
def box_outside(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """nothing of the object is in the image"""
    return np.any((boxes[:, :2] >= image_sizes) | (boxes[:, :2] + boxes[:, 2:] <= 0), axis=1)


@check("boxes that reach over their image's border by more than a pixel", "warning", boxes=True)
def box_over_border(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they are cut at the border"""
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.any((start < -OVERHANG) | (end > image_sizes + OVERHANG), axis=1)


@check("boxes of another format", "error")
def box_format(table: AnnotationTable) -> Faults:
    """COCO's are [x, y, width, height] in pixels of the image"""
    looks_like = guess_format(table.boxes, table.sizes_of_images)
    return range(len(table.boxes) if looks_like else 0), lambda _: f"they look like {looks_like}"


@check("objects whose polygons have fewer than three points", "tolerated", skipped="object")
def no_polygon(table: AnnotationTable) -> Faults:
    """Detectron2 drops the object, box and all; remove the segmentation to keep it"""
    no_polygon = [_has_no_polygon(x.get("segmentation")) for x in table.annotations]
    return of_annotations(table, no_polygon)


@check("areas that can't be true", "warning")
def false_area(table: AnnotationTable) -> Faults:
    """no positive numbers, or the same for all; APs, APm and APl go by the areas of the boxes"""
    has_area = np.array(["area" in x for x in table.annotations], dtype=bool)
    is_false = has_area & has_false_area(table.annotations)
    return of_annotations(table, is_false, lambda _: "the area of its box counts")


@check("no object to learn from", "needed")
def no_objects(table: AnnotationTable) -> Faults:
    """crowds do not count"""
    return [] if table.class_counts.any() else [0], lambda _: "0 objects"


@check("classes without objects", "warning")
def class_without_objects(table: AnnotationTable) -> Faults:
    """they can't be learned, nor evaluated"""
    ids, names = table.category_ids, table.class_names
    return np.flatnonzero(table.class_counts == 0), lambda i: f"category {ids[i]}, {names[i]}"


@check("classes with less than 2% of the objects of the most frequent one", "note")
def rare_class(table: AnnotationTable) -> Faults:
    """SAMPLER_TRAIN RepeatFactorTrainingSampler repeats them, CLASS_ALPHA auto weighs them more"""
    counts, names, total = table.class_counts, table.class_names, table.class_counts.sum()
    are_rare = (counts > 0) & (counts < _RARE * counts.max(initial=0)) & (not table.trained)
    return np.flatnonzero(are_rare), lambda i: f"{names[i]}, {counts[i]:,} of {total:,} objects"


@check("images without objects", "note")
def empty_images(table: AnnotationTable) -> Faults:
    """left out of the training where DATALOADER.FILTER_EMPTY_ANNOTATIONS"""
    return of_images(table, table.empty_images)


@check("gaps in the category ids", "note")
def category_gaps(table: AnnotationTable) -> Faults:
    """classes are numbered in the order of their ids"""
    ids = table.category_ids
    return np.flatnonzero(np.diff(ids) > 1), lambda i: f"{ids[i]} to {ids[i + 1]}"


def of_annotations(
    table: AnnotationTable, is_faulty: Sequence[bool] | np.ndarray, why: Describe | None = None
) -> Faults:
    """Faults of the annotations in a mask, bool (M,); ``why`` says by default what box it is."""

    def box(index: int) -> str:
        text = "box [{:g}, {:g}, {:g}, {:g}] in an image of {:g}×{:g}"
        return text.format(*table.boxes[index], *table.sizes_of_images[index])

    def describe(index: int) -> str:
        image = table.image_index[index]
        file_name = f"{table.file_names[image]}, " if image >= 0 else ""
        return f"{file_name}annotation {table.annotation_ids[index]}, {(why or box)(index)}"

    return np.flatnonzero(is_faulty), describe


def of_images(table: AnnotationTable, indices: Indices, why: Describe | None = None) -> Faults:
    def describe(index: int) -> str:
        entry = f"{table.file_names[index]}, image {table.image_ids[index]}"
        return f"{entry}, {why(index)}" if why else entry

    return indices, describe


def sound_objects(table: AnnotationTable) -> np.ndarray:
    """Which annotations, bool (M,), are objects of a listed image and class with a usable box."""
    faults = box_faults(table.boxes, table.sizes_of_images).items()
    is_faulty = np.any([mask for name, mask in faults if CHECKS[name].skipped], axis=0)
    return ~table.is_crowd & (table.class_index >= 0) & (table.image_index >= 0) & ~is_faulty


def _has_no_polygon(segmentation: Any) -> bool:
    are_contours = isinstance(segmentation, list) and len(segmentation) > 0
    return are_contours and not any(len(x) >= 6 and len(x) % 2 == 0 for x in segmentation)
