"""What can be wrong with a data set: one decorated function a check.

The decorator gives the name of the fault and its degree. The docstring says why the fault matters,
and reports quote it. Degrees:

- ``error``: the training would stop in its middle, or learn from nonsense.
- ``warning``: the model copes, but the user should know.
- ``tolerated``: a warning up to 1% of the objects, and an error beyond. A few such objects are an
  annotator's slip; many are a fault of the program that wrote the file.
- ``note``: a fact of the data set, in the report only.

COCO 2017 passes with warnings: some of its boxes have no height, others reach over the border by a
fraction of a pixel.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .check import Case, Faults, box_check, check, of_annotations
from .table import AnnotationTable

# Detectron2's mapper drops boxes up to this wide or high, once they are at the network's scale.
_THIN = 1e-5
# Pixels by which a box may reach over the border, which rounding explains.
_OVERHANG = 1.0
# Share of boxes over the border from which on they look like [x1, y1, x2, y2].
_MOSTLY_OUTSIDE = 0.1


# --- images ---


@check("images with the same id", "error")
def duplicate_image_id(table: AnnotationTable) -> Faults:
    """only the last of them would be loaded"""
    return _groups(
        _repeated(table.image_ids),
        lambda key, places: Case(table.file_names[places[0]], f"image {key}", _times(places)),
    )


@check("one file listed several times, with different objects", "error")
def conflicting_image(table: AnnotationTable) -> Faults:
    """what is an object in one entry is background in another"""
    return _repeated_files(table, agree=False)


@check("one file listed several times, with the same objects", "warning")
def repeated_image(table: AnnotationTable) -> Faults:
    """the image counts several times, in the evaluation too"""
    return _repeated_files(table, agree=True)


@check("image sizes that are not positive", "error", skipped="image")
def image_size(table: AnnotationTable) -> Faults:
    """boxes can't be placed in them"""
    wrong = np.flatnonzero((table.image_sizes <= 0).any(axis=1))
    return _images(table, wrong, lambda i: "{:g}×{:g}".format(*table.image_sizes[i]))


@check("images without a file", "error", skipped="image")
def missing_image(table: AnnotationTable) -> Faults:
    """reading one would stop the training"""
    return _images(table, table.files.missing, lambda _: "no such file")


@check("images that can't be decoded", "error", skipped="image")
def unreadable_image(table: AnnotationTable) -> Faults:
    """reading one would stop the training"""
    return _images(table, list(table.files.unreadable), table.files.unreadable.__getitem__)


@check("images whose size is not the annotated one", "error", skipped="image")
def wrong_size(table: AnnotationTable) -> Faults:
    """their boxes belong to another scale or orientation; Detectron2 stops at them"""
    annotated, sizes = table.image_sizes, table.files.sizes
    known = [i for i in sizes if np.isfinite(annotated[i]).all()]
    return _images(
        table,
        [i for i in known if (annotated[i] != sizes[i]).any()],
        lambda i: "annotated as {:g}×{:g}, is {}×{}".format(*annotated[i], *sizes[i]),
    )


# --- annotations ---


@check("annotations with the same id", "error")
def duplicate_annotation_id(table: AnnotationTable) -> Faults:
    """Detectron2 refuses the file"""
    return _groups(
        _repeated(table.annotation_ids),
        lambda key, places: Case("", f"annotation {key}", _times(places)),
    )


@check("annotation id 0", "warning")
def annotation_id_zero(table: AnnotationTable) -> Faults:
    """pycocotools takes a match with id 0 for no match, so the object counts as missed"""
    zeros = np.array([x == 0 for x in table.annotation_ids], dtype=bool)
    return of_annotations(table, zeros, lambda _: "number them from 1")


@check("annotations of images that are not listed", "error", skipped="object")
def unknown_image(table: AnnotationTable) -> Faults:
    """Detectron2 drops these objects"""
    return of_annotations(table, table.image_index < 0, lambda _: "its image_id is not listed")


@check("annotations of categories that are not listed", "error")
def unknown_category(table: AnnotationTable) -> Faults:
    """Detectron2 stops at them"""
    categories = table.annotated_categories
    return of_annotations(
        table, table.class_index < 0, lambda i: f"category {categories[i]} is not listed"
    )


@box_check("boxes with NaN or infinite numbers", "error", skipped="object")
def box_not_finite(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they make the loss NaN"""
    return ~np.isfinite(boxes).all(axis=1)


@box_check("boxes of negative width or height", "error", skipped="object")
def negative_size(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they match no anchor: the object would be trained as background"""
    return np.any(boxes[:, 2:] < 0, axis=1)


@box_check("boxes without area", "tolerated", skipped="object")
def zero_area(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they match no anchor: the object is trained as background"""
    return np.any(boxes[:, 2:] <= _THIN, axis=1)


@box_check("boxes wholly outside their image", "error", skipped="object")
def box_outside(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """nothing of the object is in the image"""
    return np.any((boxes[:, :2] >= image_sizes) | (_ends(boxes) <= 0), axis=1)


@box_check("boxes that reach over their image's border by more than a pixel", "warning")
def box_over_border(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """they are cut at the border"""
    return np.any((boxes[:, :2] < -_OVERHANG) | (_ends(boxes) > image_sizes + _OVERHANG), axis=1)


@check("boxes of another format", "error")
def box_format(table: AnnotationTable) -> Faults:
    """COCO's are [x, y, width, height] in pixels of the image"""
    looks_like = _guess_format(table.boxes, table.sizes_of_images)
    indices = range(len(table.boxes) if looks_like else 0)
    return Faults(indices, lambda _: Case("", "all boxes", f"they are {looks_like}"))


@check("objects whose polygons have fewer than three points", "tolerated", skipped="object")
def no_polygon(table: AnnotationTable) -> Faults:
    """Detectron2 drops the object, box and all; remove the segmentation to keep it"""
    return of_annotations(table, table.has_no_polygon)


# --- the whole set ---


@check("no object to learn from", "error", training_only=True)
def no_objects(table: AnnotationTable) -> Faults:
    """crowds do not count"""
    return Faults([] if table.class_counts.any() else [0], lambda _: Case("", "", "0 objects"))


@check("classes without objects", "warning")
def class_without_objects(table: AnnotationTable) -> Faults:
    """they can't be learned, nor evaluated"""
    ids, names = table.category_ids, table.class_names
    empty = np.flatnonzero(table.class_counts == 0)
    return Faults(empty, lambda i: Case("", f"category {ids[i]}", names[i]))


@check("categories of the same name", "warning")
def same_name(table: AnnotationTable) -> Faults:
    """they are learned as different classes"""
    return _groups(
        _repeated(table.class_names),
        lambda name, places: Case("", f"categories {_join(table.category_ids, places)}", name),
    )


@check("images without objects", "note")
def empty_images(table: AnnotationTable) -> Faults:
    """left out of the training where DATALOADER.FILTER_EMPTY_ANNOTATIONS"""
    return _images(table, table.empty_images, lambda _: "")


@check("gaps in the category ids", "note")
def category_gaps(table: AnnotationTable) -> Faults:
    """classes are numbered in the order of their ids"""
    ids = table.category_ids
    gaps = np.flatnonzero(np.diff(ids) > 1)
    return Faults(gaps, lambda i: Case("", f"{ids[i]} to {ids[i + 1]}", ""))


# --- what several checks share ---


def _images(
    table: AnnotationTable, indices: Sequence[int] | np.ndarray, why: Callable[[int], str]
) -> Faults:
    def describe(index: int) -> Case:
        return Case(table.file_names[index], f"image {table.image_ids[index]}", why(index))

    return Faults(indices, describe)


def _ends(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:]


def _guess_format(boxes: np.ndarray, image_sizes: np.ndarray) -> str | None:
    """What boxes look like that are not x, y, width, height in pixels; None where they may be."""
    known = np.isfinite(boxes).all(axis=1) & np.isfinite(image_sizes).all(axis=1)
    start, extent, sizes = boxes[known, :2], boxes[known, 2:], image_sizes[known]
    if len(start) == 0:
        return None
    if (start >= 0).all() and (start + extent <= 1).all() and (extent > 0).all():
        return "numbers between 0 and 1, fractions of the image's size"
    over = (start + extent > sizes + _OVERHANG).any(axis=1).mean()
    are_corners = (extent > start).all() and (extent <= sizes + _OVERHANG).all()
    if over > _MOSTLY_OUTSIDE and are_corners:
        return f"[x1, y1, x2, y2]: read as [x, y, width, height], {over:.0%} leave their image"
    return None


def _repeated(values: Sequence[Hashable]) -> dict[Any, list[int]]:
    """Values that occur more than once, and where."""
    counts = Counter(values)
    places = defaultdict(list)
    if len(counts) < len(values):
        for index, value in enumerate(values):
            if counts[value] > 1:
                places[value].append(index)
    return places


def _groups(groups: dict[Any, list[int]], describe: Callable[[Any, list[int]], Case]) -> Faults:
    items = list(groups.items())
    return Faults(range(len(items)), lambda index: describe(*items[index]))


def _repeated_files(table: AnnotationTable, *, agree: bool) -> Faults:
    """Files that are listed several times, with the same objects (``agree``) or others."""
    repeated = _repeated(table.file_names)
    contents: dict[int, list[tuple]] = {i: [] for places in repeated.values() for i in places}
    for index in np.flatnonzero(np.isin(table.image_index, list(contents))):
        entry = (int(table.class_index[index]), *table.boxes[index].tolist())
        contents[int(table.image_index[index])].append(entry)
    groups = {
        file_name: places
        for file_name, places in repeated.items()
        if (len({tuple(sorted(contents[i])) for i in places}) == 1) == agree
    }
    return _groups(
        groups,
        lambda name, places: Case(
            name, f"images {_join(table.image_ids, places[:5])}", _times(places)
        ),
    )


def _times(places: list[int]) -> str:
    return f"{len(places)} times"


def _join(ids: Sequence[int | str], places: list[int]) -> str:
    return ", ".join(str(ids[place]) for place in places)
