"""What can be said of a data set without opening an image."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .boxes import box_faults, guess_format
from .report import MAX_CASES, Case, Finding
from .table import AnnotationTable


def class_counts(table: AnnotationTable) -> np.ndarray:
    """Objects of each class, int64 (K,); crowds and unknown classes are left out."""
    counted = ~table.is_crowd & (table.class_index >= 0)
    return np.bincount(table.class_index[counted], minlength=len(table.class_names))


def check_annotations(table: AnnotationTable) -> list[Finding]:
    """All findings of :data:`~focal_retina.data.checks.kinds.KINDS` that need no pixels."""
    findings = [
        *_check_identities(table),
        *_check_references(table),
        *_check_boxes(table),
        *_check_classes(table),
    ]
    return [finding for finding in findings if finding.count]


def finding(kind: str, indices: Sequence[int] | np.ndarray, case: Callable[[int], Case]) -> Finding:
    """A finding on the entries at ``indices``, with the first cases spelled out."""
    return Finding(kind, len(indices), tuple(case(int(i)) for i in indices[:MAX_CASES]))


def _annotation_case(table: AnnotationTable, why: Callable[[int], str]) -> Callable[[int], Case]:
    def case(index: int) -> Case:
        image = int(table.image_index[index])
        file_name = table.file_names[image] if image >= 0 else ""
        return Case(file_name, f"annotation {table.annotation_ids[index]}", why(index))

    return case


def _repeated(values: Iterable[Hashable]) -> dict[Any, list[int]]:
    """Values that occur more than once, and where."""
    places = defaultdict(list)
    for index, value in enumerate(values):
        places[value].append(index)
    return {value: indices for value, indices in places.items() if len(indices) > 1}


def _check_identities(table: AnnotationTable) -> list[Finding]:
    images = _repeated(table.image_ids)
    annotations = _repeated(table.annotation_ids)
    zeros = [index for index, key in enumerate(table.annotation_ids) if key == 0]
    return [
        Finding(
            "duplicate_image_id",
            len(images),
            tuple(
                Case(table.file_names[places[0]], f"image {key}", f"{len(places)} times")
                for key, places in islice(images.items(), MAX_CASES)
            ),
        ),
        Finding(
            "duplicate_annotation_id",
            len(annotations),
            tuple(
                Case("", f"annotation {key}", f"{len(places)} times")
                for key, places in islice(annotations.items(), MAX_CASES)
            ),
        ),
        finding(
            "annotation_id_zero", zeros, _annotation_case(table, lambda _: "number them from 1")
        ),
        *_check_repeated_files(table),
    ]


def _check_repeated_files(table: AnnotationTable) -> list[Finding]:
    repeated = _repeated(table.file_names)
    contents: dict[int, list[tuple]] = {i: [] for places in repeated.values() for i in places}
    for index in np.flatnonzero(np.isin(table.image_index, list(contents))):
        entry = (int(table.class_index[index]), *table.boxes[index].tolist())
        contents[int(table.image_index[index])].append(entry)
    cases: dict[str, list[Case]] = {"conflicting_image": [], "repeated_image": []}
    for file_name, places in repeated.items():
        agree = len({tuple(sorted(contents[index])) for index in places}) == 1
        ids = ", ".join(str(table.image_ids[index]) for index in places[:5])
        cases["repeated_image" if agree else "conflicting_image"].append(
            Case(file_name, f"images {ids}", f"{len(places)} times")
        )
    return [Finding(kind, len(all_), tuple(all_[:MAX_CASES])) for kind, all_ in cases.items()]


def _check_references(table: AnnotationTable) -> list[Finding]:
    return [
        finding(
            "unknown_image",
            np.flatnonzero(table.image_index < 0),
            _annotation_case(table, lambda _: "its image_id is not among the images"),
        ),
        finding(
            "unknown_category",
            np.flatnonzero(table.class_index < 0),
            _annotation_case(
                table, lambda i: f"category {table.annotated_categories[i]} is not listed"
            ),
        ),
    ]


def _check_boxes(table: AnnotationTable) -> list[Finding]:
    # -1, an unknown image, takes the row of NaN
    sizes = np.vstack([table.image_sizes, np.full((1, 2), np.nan)])[table.image_index]

    def describe(index: int) -> str:
        box = ", ".join(f"{x:g}" for x in table.boxes[index])
        width, height = sizes[index]
        return f"box [{box}] in an image of {width:g}×{height:g}"

    case = _annotation_case(table, describe)
    bad_sizes = np.flatnonzero((table.image_sizes <= 0).any(axis=1))
    looks_like = guess_format(table.boxes, sizes)
    return [
        finding(
            "image_size",
            bad_sizes,
            lambda i: Case(
                table.file_names[i],
                f"image {table.image_ids[i]}",
                "{:g}×{:g}".format(*table.image_sizes[i]),
            ),
        ),
        *(
            finding(kind, np.flatnonzero(mask), case)
            for kind, mask in box_faults(table.boxes, sizes).items()
        ),
        finding("no_polygon", np.flatnonzero(table.has_no_polygon), case),
        Finding("box_format", len(table.boxes), (Case("", "all boxes", f"they are {looks_like}"),))
        if looks_like
        else Finding("box_format", 0, ()),
    ]


def _check_classes(table: AnnotationTable) -> list[Finding]:
    counts = class_counts(table)
    names = _repeated(table.class_names)
    gaps = [
        (low, high)
        for low, high in zip(table.category_ids, table.category_ids[1:], strict=False)
        if high > low + 1
    ]
    empty = np.setdiff1d(np.arange(len(table.image_ids)), table.image_index[~table.is_crowd])
    return [
        Finding("no_objects", int(not counts.any()), (Case("", "", "0 objects"),)),
        finding(
            "class_without_objects",
            np.flatnonzero(counts == 0),
            lambda i: Case("", f"category {table.category_ids[i]}", table.class_names[i]),
        ),
        Finding(
            "same_name",
            len(names),
            tuple(
                Case(
                    "", f"categories {', '.join(str(table.category_ids[i]) for i in places)}", name
                )
                for name, places in islice(names.items(), MAX_CASES)
            ),
        ),
        finding(
            "empty_images",
            empty,
            lambda i: Case(table.file_names[i], f"image {table.image_ids[i]}", ""),
        ),
        Finding(
            "category_gaps",
            len(gaps),
            tuple(Case("", f"{low} to {high}", "") for low, high in gaps[:MAX_CASES]),
        ),
    ]
