"""What a check is: a function with a name for the fault, a degree and a meaning.

:mod:`~focal_retina.dataset_check.checks` holds all of them. Shapes: M annotations.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import numpy as np

from .table import AnnotationTable


class Case(NamedTuple):
    """One faulty entry, such as ("images/a.jpg", "annotation 17", "box [0, 0, 3, nan]")."""

    file: str
    entry: str
    why: str

    def __str__(self) -> str:
        return ", ".join(part for part in self if part)


class Faults(NamedTuple):
    """The faulty entries of one check, and what to say of each."""

    indices: Sequence[int] | np.ndarray
    describe: Callable[[int], Case]


Find = Callable[[AnnotationTable], Faults]
BoxTest = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Check(NamedTuple):
    """A check function, and what its decorator and its docstring say."""

    name: str
    title: str
    degree: str
    meaning: str
    skipped: str  # what DATA_CHECK.MODE skip removes: "object", "image" or nothing
    training_only: bool  # an error is a warning in a set that is only evaluated
    find: Find


CHECKS: dict[str, Check] = {}  # in the order of a report
_BOX_TESTS: dict[str, BoxTest] = {}


def check(
    title: str, degree: str, *, skipped: str = "", training_only: bool = False
) -> Callable[[Find], Find]:
    """Register a check; see :class:`Check`."""

    def register(find: Find) -> Find:
        name, meaning = find.__name__, find.__doc__ or ""
        CHECKS[name] = Check(name, title, degree, meaning, skipped, training_only, find)
        return find

    return register


def box_check(title: str, degree: str, *, skipped: str = "") -> Callable[[BoxTest], BoxTest]:
    """Register a check of boxes alone: a function of what :func:`box_faults` takes, that returns a
    mask, bool (M,)."""

    def register(is_faulty: BoxTest) -> BoxTest:
        name = is_faulty.__name__
        _BOX_TESTS[name] = is_faulty

        @check(title, degree, skipped=skipped)
        @wraps(is_faulty)
        def find(table: AnnotationTable) -> Faults:
            return of_annotations(table, box_faults(table.boxes, table.sizes_of_images)[name])

        return is_faulty

    return register


def box_faults(boxes: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Sort boxes by the first box check that they fail.

    Args:
        boxes: float64 (M, 4), x, y, width, height in pixels.
        image_sizes: float64 (M, 2), width and height of each box's image; NaN where unknown, and
            then no box is outside.

    Returns:
        A mask for each box check, bool (M,).
    """
    rest = np.ones(len(boxes), dtype=bool)
    faults = {}
    with np.errstate(invalid="ignore", over="ignore"):
        for name, is_faulty in _BOX_TESTS.items():
            faults[name] = rest & is_faulty(boxes, image_sizes)
            rest &= ~faults[name]
    return faults


def of_annotations(
    table: AnnotationTable, is_faulty: np.ndarray, why: Callable[[int], str] | None = None
) -> Faults:
    """Faults of the annotations in a mask, bool (M,); ``why`` says by default what box it is."""

    def describe(index: int) -> Case:
        image = int(table.image_index[index])
        file_name = table.file_names[image] if image >= 0 else ""
        width, height = table.image_sizes[image] if image >= 0 else (np.nan, np.nan)
        box = ", ".join(f"{x:g}" for x in table.boxes[index])
        reason = why(index) if why else f"box [{box}] in an image of {width:g}×{height:g}"
        return Case(file_name, f"annotation {table.annotation_ids[index]}", reason)

    return Faults(np.flatnonzero(is_faulty), describe)
