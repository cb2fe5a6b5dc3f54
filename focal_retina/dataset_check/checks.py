"""What can be wrong with a data set: one decorated function a check.

A check takes an :class:`AnnotationTable` and returns the :class:`Faults` that it finds. The
decorator gives the name of the fault and its degree; the docstring says why the fault matters, and
reports quote it. Degrees:

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
from typing import Any, NamedTuple

import numpy as np

from .boxes import box_faults, guess_format
from .table import AnnotationTable


class Case(NamedTuple):
    """One faulty entry, such as ("images/a.jpg", "annotation 17", "box [0, 0, 3, nan]")."""

    file: str
    entry: str
    why: str

    def __str__(self) -> str:
        return ", ".join(part for part in self if part)


class Faults(NamedTuple):
    """The faulty entries of one check."""

    indices: Sequence[int] | np.ndarray
    describe: Callable[[int], Case]
    """Of one of ``indices``."""


Find = Callable[[AnnotationTable], Faults]


class Check(NamedTuple):
    """A check function and what is said of it."""

    name: str
    title: str
    degree: str
    meaning: str
    skipped: str
    """What DATA_CHECK.MODE ``skip`` removes: ``object``, ``image``, or nothing (the fault then
    stays an error)."""
    training_only: bool
    """Whether an error of this check is a warning in a set that is only evaluated."""
    find: Find


CHECKS: dict[str, Check] = {}
"""All checks, in the order of a report."""


def check(
    title: str, degree: str, *, skipped: str = "", training_only: bool = False
) -> Callable[[Find], Find]:
    """Register a check; see :class:`Check`."""

    def register(find: Find) -> Find:
        name, meaning = find.__name__, find.__doc__ or ""
        CHECKS[name] = Check(name, title, degree, meaning, skipped, training_only, find)
        return find

    return register


# --- images ---


@check("images with the same id", "error")
def duplicate_image_id(table: AnnotationTable) -> Faults:
    """only the last of them would be loaded"""
    return _repetitions("image", table.image_ids, table.file_names)


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
    return _repetitions("annotation", table.annotation_ids)


@check("annotation id 0", "warning")
def annotation_id_zero(table: AnnotationTable) -> Faults:
    """pycocotools takes a match with id 0 for no match, so the object counts as missed"""
    zeros = np.array([x == 0 for x in table.annotation_ids], dtype=bool)
    return _annotations(table, zeros, lambda _: "number them from 1")


@check("annotations of images that are not listed", "error", skipped="object")
def unknown_image(table: AnnotationTable) -> Faults:
    """Detectron2 drops these objects"""
    return _annotations(table, table.image_index < 0, lambda _: "its image_id is not listed")


@check("annotations of categories that are not listed", "error")
def unknown_category(table: AnnotationTable) -> Faults:
    """Detectron2 stops at them"""
    categories = table.annotated_categories
    return _annotations(
        table, table.class_index < 0, lambda i: f"category {categories[i]} is not listed"
    )


@check("boxes with NaN or infinite numbers", "error", skipped="object")
def box_not_finite(table: AnnotationTable) -> Faults:
    """they make the loss NaN"""
    return _boxes(table, "box_not_finite")


@check("boxes of negative width or height", "error", skipped="object")
def negative_size(table: AnnotationTable) -> Faults:
    """they match no anchor: the object would be trained as background"""
    return _boxes(table, "negative_size")


@check("boxes wholly outside their image", "error", skipped="object")
def box_outside(table: AnnotationTable) -> Faults:
    """nothing of the object is in the image"""
    return _boxes(table, "box_outside")


@check("boxes of another format", "error")
def box_format(table: AnnotationTable) -> Faults:
    """COCO's are [x, y, width, height] in pixels of the image"""
    looks_like = guess_format(table.boxes, table.sizes_of_images)
    indices = range(len(table.boxes) if looks_like else 0)
    return Faults(indices, lambda _: Case("", "all boxes", f"they are {looks_like}"))


@check("boxes without area", "tolerated", skipped="object")
def zero_area(table: AnnotationTable) -> Faults:
    """they match no anchor: the object is trained as background"""
    return _boxes(table, "zero_area")


@check("objects whose polygons have fewer than three points", "tolerated", skipped="object")
def no_polygon(table: AnnotationTable) -> Faults:
    """Detectron2 drops the object, box and all; remove the segmentation to keep it"""
    return _annotations(table, table.has_no_polygon)


@check("boxes that reach over their image's border by more than a pixel", "warning")
def box_over_border(table: AnnotationTable) -> Faults:
    """they are cut at the border"""
    return _boxes(table, "box_over_border")


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
    groups = list(_repeated(table.class_names).items())

    def describe(index: int) -> Case:
        name, places = groups[index]
        return Case("", f"categories {_join(table.category_ids, places)}", name)

    return Faults(range(len(groups)), describe)


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


def _annotations(
    table: AnnotationTable, is_faulty: np.ndarray, why: Callable[[int], str] | None = None
) -> Faults:
    """``is_faulty``: bool (M,); ``why``: by default the box."""

    def describe(index: int) -> Case:
        image = int(table.image_index[index])
        file_name = table.file_names[image] if image >= 0 else ""
        width, height = table.image_sizes[image] if image >= 0 else (np.nan, np.nan)
        box = ", ".join(f"{x:g}" for x in table.boxes[index])
        reason = why(index) if why else f"box [{box}] in an image of {width:g}×{height:g}"
        return Case(file_name, f"annotation {table.annotation_ids[index]}", reason)

    return Faults(np.flatnonzero(is_faulty), describe)


def _boxes(table: AnnotationTable, fault: str) -> Faults:
    return _annotations(table, box_faults(table.boxes, table.sizes_of_images)[fault])


def _repeated(values: Sequence[Hashable]) -> dict[Any, list[int]]:
    """Values that occur more than once, and where."""
    counts = Counter(values)
    places = defaultdict(list)
    if len(counts) < len(values):
        for index, value in enumerate(values):
            if counts[value] > 1:
                places[value].append(index)
    return places


def _repetitions(
    what: str, ids: Sequence[Hashable], file_names: Sequence[str] | None = None
) -> Faults:
    groups = list(_repeated(ids).items())

    def describe(index: int) -> Case:
        key, places = groups[index]
        file_name = file_names[places[0]] if file_names else ""
        return Case(file_name, f"{what} {key}", f"{len(places)} times")

    return Faults(range(len(groups)), describe)


def _repeated_files(table: AnnotationTable, *, agree: bool) -> Faults:
    """Files that are listed several times, with the same objects (``agree``) or others."""
    repeated = _repeated(table.file_names)
    contents: dict[int, list[tuple]] = {i: [] for places in repeated.values() for i in places}
    for index in np.flatnonzero(np.isin(table.image_index, list(contents))):
        entry = (int(table.class_index[index]), *table.boxes[index].tolist())
        contents[int(table.image_index[index])].append(entry)
    groups = [
        (file_name, places)
        for file_name, places in repeated.items()
        if (len({tuple(sorted(contents[i])) for i in places}) == 1) == agree
    ]

    def describe(index: int) -> Case:
        file_name, places = groups[index]
        ids = _join(table.image_ids, places[:5])
        return Case(file_name, f"images {ids}", f"{len(places)} times")

    return Faults(range(len(groups)), describe)


def _join(ids: Sequence[int | str], places: list[int]) -> str:
    return ", ".join(str(ids[place]) for place in places)
