"""A data set cut into training, validation and test images, its classes spread evenly.

Iterative stratification (Sechidis et al., ECML 2011) of groups of images that stay together.
Shapes: N images, S sides, the training first.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_json
from .image_files import near_duplicate_groups
from .report import check_dataset

_NO_OBJECTS = -1  # a class of its own
# Checks of what can't be assigned to a side
_FATAL = {"duplicate_image_id", "unknown_image", "unknown_category"}
_FATAL |= {"missing_image", "unreadable_image"}


def split_images(
    classes: Sequence[Collection[int]],
    groups: NDArray[np.int64],
    shares: NDArray[np.float64],
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """Indices of the images of each side, ascending; a function of the arguments alone.

    Each class, rarest first, sends each of its groups to the side that lacks most of the class. The
    last group of a class goes to the first side that has none of it: so the training has all
    classes, and the validation those of two groups or more, unless images have many rare classes.

    Args:
        classes: of the objects of each of the N images, 0 and above.
        groups: (N,), equal where images must stay together.
        shares: (S,), of the images for each side; positive, 1 their sum.

    Raises:
        ValueError: a side gets no image.
    """
    group_of = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group_of)
    counts = [Counter[int]() for _ in sizes]  # images of each class
    for group, of_image in zip(group_of, classes, strict=True):
        counts[group].update(set(of_image) or {_NO_OBJECTS})
    members = defaultdict[int, list[int]](list)  # groups of each class, the large ones first
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        for label in counts[group]:
            members[label].append(group)
    wanted = {k: shares * sum(counts[group][k] for group in x) for k, x in members.items()}
    wanted_images, num_left = shares * len(classes), {k: len(x) for k, x in members.items()}
    has_class = {k: np.zeros(len(shares), dtype=bool) for k in members}
    side_of = np.full(len(sizes), -1)
    while num_left := {k: x for k, x in num_left.items() if x}:
        rarest = min(num_left, key=lambda k: (num_left[k], k))
        for group in (x for x in members[rarest] if side_of[x] < 0):
            lacking = [~has_class[k] for k in counts[group] if num_left[k] == 1]
            most_wanted = np.lexsort((wanted_images, wanted[rarest]))[-1]
            is_needed = np.any(lacking, axis=0) if lacking else np.False_
            side = side_of[group] = is_needed.argmax() if is_needed.any() else most_wanted
            wanted_images[side] -= sizes[group]
            for k, num_images in counts[group].items():
                wanted[k][side] -= num_images
                has_class[k][side] = True
                num_left[k] -= 1
    sides = [np.flatnonzero(side_of[group_of] == side) for side in range(len(shares))]
    if not all(map(len, sides)):
        raise ValueError(
            f"{len(classes)} images, {len(sizes)} without near-duplicates, are too few: the sides "
            f"would have {', '.join(str(len(x)) for x in sides)}; leave one out or enlarge it"
        )
    return sides


def split_dataset(
    name: str, output: Path, fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[Any]]:
    """Write ``output``/SIDE.json for each side of ``fractions``: COCO json with all that the file
    of a registered set says of some of its images, and with all its other sections. Near-duplicates
    stay together.

    Returns columns of a table: the images and objects (without crowds) of each class on each side.
    ValueError: an image or an id that cannot be assigned, shares that are not positive or don't add
    up to 1, and as of :func:`split_images`.
    FileExistsError: one of the files is there.
    """
    shares = np.array([*fractions.values()])
    if shares.min() <= 0 or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"shares {shares}: each must be positive, and 1 the sum")
    if there := [x for x in fractions if (output / f"{x}.json").exists()]:
        raise FileExistsError(f"{output / there[0]}.json is there already: choose another folder")
    report = check_dataset(name, num_decoded=-1)
    if fatal := [x for x in report.findings if x.check.name in _FATAL]:
        fault = f"{fatal[0]} (such as {fatal[0].cases[0]})"
        raise ValueError(f"{report.table.source}: {fault}; focal-retina check lists all faults")
    table = report.table
    classes: list[list[int]] = [[] for _ in table.images]
    objects = np.flatnonzero(~table.is_crowd)
    for image, label in zip(table.image_index[objects], table.class_index[objects], strict=True):
        classes[image].append(label)
    groups = near_duplicate_groups(np.array([table.files.hashes[i] for i in range(len(classes))]))
    sides = split_images(classes, groups, shares, seed)
    output.mkdir(parents=True, exist_ok=True)
    content = json.loads(Path(table.source).read_bytes())  # with the polygons
    images, annotations = content["images"], content.get("annotations", [])
    has_twin = np.bincount(groups)[groups] > 1
    rows = [*table.class_names, "no objects", "near-duplicates", "all"]
    columns: dict[str, list[Any]] = {"class": rows}
    for side, indices in zip(fractions, sides, strict=True):
        chosen = {images[i]["id"]: images[i] for i in indices}
        content["images"] = list(chosen.values())
        content["annotations"] = [x for x in annotations if x["image_id"] in chosen]
        write_json(output / f"{side}.json", content, indent=None)
        of_images = Counter(chain.from_iterable(set(classes[i]) for i in indices))
        of_objects = Counter(chain.from_iterable(classes[i] for i in indices))
        further = sum(not classes[i] for i in indices), has_twin[indices].sum(), len(indices)
        labels = range(len(table.class_names))
        columns[f"{side} images"] = [*(of_images[k] for k in labels), *further]
        columns[f"{side} objects"] = [*(of_objects[k] for k in labels), "", "", of_objects.total()]
    return columns
