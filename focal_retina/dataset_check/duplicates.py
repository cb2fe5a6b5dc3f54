"""What stands twice in a data set, or in it and in the training set: further checks."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .checks import Faults, check, of_annotations, of_images, sound_objects
from .image_files import NEAR, differing_bits
from .table import AnnotationTable

_SAME_IOU = 0.95  # from which on two boxes are of one object


@check("images with the same id", "error")
def duplicate_image_id(table: AnnotationTable) -> Faults:
    """only the last of them would be loaded"""
    names = table.file_names
    return _repeated(table.image_ids, lambda x, at: f"{names[at[0]]}, image {x}, {len(at)} times")


@check("annotations with the same id", "error")
def duplicate_annotation_id(table: AnnotationTable) -> Faults:
    """Detectron2 refuses the file"""
    return _repeated(table.annotation_ids, lambda x, at: f"annotation {x}, {len(at)} times")


@check("categories of the same name", "warning")
def same_name(table: AnnotationTable) -> Faults:
    """they are learned as different classes"""
    ids = np.array(table.category_ids, dtype=str)
    return _repeated(table.class_names, lambda x, at: f"categories {', '.join(ids[at])}, {x}")


@check("one file listed several times, with different objects", "error")
def conflicting_image(table: AnnotationTable) -> Faults:
    """what is an object in one entry is background in another"""
    return _repeated_files(table, agree=False)


@check("one file listed several times, with the same objects", "warning")
def repeated_image(table: AnnotationTable) -> Faults:
    """the image counts several times, in the evaluation too"""
    return _repeated_files(table, agree=True)


@check("objects annotated twice", "warning")
def repeated_object(table: AnnotationTable) -> Faults:
    """the evaluation counts the second as missed"""
    return _same_boxes(table, same_class=True)


@check("objects annotated as two classes", "warning")
def object_of_two_classes(table: AnnotationTable) -> Faults:
    """an anchor learns only one of the two"""
    return _same_boxes(table, same_class=False)


@check("images that the training set has, too, or nearly so", "warning")
def trained_image(table: AnnotationTable) -> Faults:
    """the evaluation is too good on them; compared: all file names, and the decoded images"""
    names, hashes = table.file_names, table.files.hashes
    trained = {os.path.abspath(x) for other in table.trained for x in other.file_names}
    found = {i: "the same file" for i, x in enumerate(names) if os.path.abspath(x) in trained}
    decoded = [(x.file_names[i], y) for x in table.trained for i, y in x.files.hashes.items()]
    others = np.array([y for _, y in decoded], dtype=np.float32)
    for index in hashes.keys() - found.keys() if decoded else ():
        bits = differing_bits(hashes[index], others)
        if bits.min() <= NEAR:
            found[index] = f"like {decoded[bits.argmin()][0]}"
    return of_images(table, sorted(found), found.__getitem__)


def _same_boxes(table: AnnotationTable, *, same_class: bool) -> Faults:
    """Objects whose IoU with an earlier one of the image, of its class or another, is over 0.95."""
    rows = np.flatnonzero(sound_objects(table))
    rows = rows[np.lexsort((table.boxes[rows, 0], table.image_index[rows]))]
    image, label, boxes = table.image_index[rows], table.class_index[rows], table.boxes[rows]
    earlier: dict[int, int] = {}
    first, step = np.arange(len(rows)), 1
    # Such boxes begin within 5% of a width: in the order of x, one looks no further.
    while len(first := first[first + step < len(rows)]):
        second = first + step
        (x, y, w, h), (x2, y2, w2, h2) = boxes[first].T, boxes[second].T
        is_near = (image[first] == image[second]) & (x2 - x <= (1 - _SAME_IOU) * w)
        height = np.minimum(y + h, y2 + h2) - np.maximum(y, y2)
        overlap = (np.minimum(x + w, x2 + w2) - x2) * height.clip(0)
        is_same = is_near & (overlap > _SAME_IOU * (w * h + w2 * h2 - overlap))
        is_same &= (label[first] == label[second]) == same_class
        earlier.update(zip(rows[second[is_same]].tolist(), rows[first[is_same]], strict=True))
        first, step = first[is_near], step + 1

    def why(index: int) -> str:
        twin = earlier[index]
        names = [table.class_names[table.class_index[i]] for i in (index, twin)]
        return f"{names[0]}, has the box of annotation {table.annotation_ids[twin]}, {names[1]}"

    return of_annotations(table, np.isin(np.arange(len(table.boxes)), list(earlier)), why)


def _repeated(
    values: Sequence[Hashable],
    describe: Callable[[Any, list[int]], str],
    keep: Callable[[list[int]], bool] = lambda _: True,
) -> Faults:
    """Values that occur more than once; ``describe`` and ``keep`` take where."""
    places = defaultdict[Any, list[int]](list)
    for index, value in enumerate(values):
        places[value].append(index)
    found = [(value, at) for value, at in places.items() if len(at) > 1 and keep(at)]
    return range(len(found)), lambda index: describe(*found[index])


def _repeated_files(table: AnnotationTable, *, agree: bool) -> Faults:
    """Files that are listed several times, with the same objects (``agree``) or others."""
    names, times, ids = table.file_names, Counter(table.file_names), table.image_ids
    contents: dict[int, list] = {i: [] for i, name in enumerate(names) if times[name] > 1}
    for index in np.flatnonzero(np.isin(table.image_index, list(contents))):
        objects = contents[table.image_index[index]]
        objects.append((table.class_index[index], *table.boxes[index]))
    return _repeated(
        names,
        lambda x, at: f"{x}, images {', '.join(str(ids[i]) for i in at[:5])}, {len(at)} times",
        lambda at: (len({tuple(sorted(contents[i])) for i in at}) == 1) == agree,
    )
