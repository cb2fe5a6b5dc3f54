"""A data set cut into training, validation and test images, its classes spread evenly.

Iterative stratification (Sechidis et al., ECML 2011) of groups of images that stay together.
Shapes: N images, S sides, the training first.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_json
from .coco import read_coco_json
from .image_files import Hashes, inspect_images, near_duplicate_groups

_NO_OBJECTS = -1  # a class of its own


def split_images(
    classes: Sequence[Collection[int]],
    groups: NDArray[np.int64],
    fractions: Sequence[float],
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """Indices of the images of each side, ascending; a function of the arguments alone.

    Each class, rarest first, sends each of its groups to the side that lacks most of the class. The
    last group of a class goes to the first side that has none of it: so the training has all
    classes, and the validation those of two groups or more, unless images have many rare classes.

    Args:
        classes: of the objects of each of the N images, 0 and above.
        groups: (N,), equal where images must stay together.
        fractions: (S,), of the images for each side.

    Raises:
        ValueError: fractions that are not positive or don't add up to 1; a side gets no image.
    """
    shares = np.array(fractions)
    if shares.min() <= 0 or abs(shares.sum() - 1) > 1e-6:
        listed = ", ".join(f"{x:g}" for x in fractions)
        raise ValueError(f"shares of the images {listed}: each must be positive, and 1 the sum")
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
            f"would have {', '.join(str(len(x)) for x in sides)}; ask for fewer sides"
        )
    return sides


def split_coco_json(
    json_file: str, image_root: str, output: Path, fractions: Mapping[str, float], seed: int = 0
) -> list[dict[str, object]]:
    """Write ``output``/NAME.json for each name of ``fractions``: COCO json with all that the file
    says of some of its images, and with all its other sections. Near-duplicates stay together.

    Returns a table: a row a class, of the images and objects (without crowds) on each side.
    ValueError: the file is not COCO json, an image cannot be read, and as of :func:`split_images`.
    FileExistsError: one of the files is there.
    """
    if there := [x for x in fractions if (output / f"{x}.json").exists()]:
        raise FileExistsError(f"{output / there[0]}.json is there already: choose another folder")
    names = {x["id"]: x["name"] for x in read_coco_json(json_file)["categories"]}
    content = json.loads(Path(json_file).read_bytes())  # with the polygons
    images, annotations = content["images"], content.get("annotations", [])
    classes = _classes_of_objects(json_file, images, annotations, list(names))
    hashes = _hashes(json_file, [os.path.join(image_root, x["file_name"]) for x in images])
    groups = near_duplicate_groups(hashes)
    sides = dict(
        zip(fractions, split_images(classes, groups, list(fractions.values()), seed), strict=True)
    )
    output.mkdir(parents=True, exist_ok=True)
    for name, indices in sides.items():
        chosen = {images[i]["id"]: images[i] for i in indices}
        content["images"] = list(chosen.values())
        content["annotations"] = [x for x in annotations if x["image_id"] in chosen]
        write_json(output / f"{name}.json", content, indent=None)
    return _count(list(names.values()), classes, np.bincount(groups)[groups] > 1, sides)


def _classes_of_objects(
    json_file: str, images: list[dict], annotations: list[dict], category_ids: list[int]
) -> list[list[int]]:
    """Of each image, without crowds; ValueError: an id is not listed, or is listed twice."""
    classes: dict[int | str, list[int]] = {x["id"]: [] for x in images}
    class_of = {category: index for index, category in enumerate(category_ids)}
    faults = ["an image id occurs twice"] * (len(classes) < len(images))
    for x in annotations:
        if x["image_id"] not in classes or x["category_id"] not in class_of:
            faults.append(f"the image or category of annotation {x['id']} is not listed")
        elif not x.get("iscrowd", 0):
            classes[x["image_id"]].append(class_of[x["category_id"]])
    if faults:
        raise ValueError(f"{json_file}: {faults[0]}; focal-retina check lists such faults")
    return list(classes.values())


def _hashes(json_file: str, file_names: list[str]) -> Hashes:
    files = inspect_images(file_names, -1)
    faults = {**dict.fromkeys(files.missing, "no such file"), **files.unreadable}
    for index, why in faults.items():
        text = f"{json_file}: {file_names[index]}: {why}; focal-retina check lists such faults"
        raise ValueError(text)
    return np.array([files.hashes[i] for i in range(len(file_names))])


def _count(
    names: list[str],
    classes: list[list[int]],
    has_twin: NDArray[np.bool_],
    sides: Mapping[str, NDArray[np.int64]],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"class": x} for x in names]
    rows += [{"class": x} for x in ("no objects", "near-duplicates", "all")]
    for side, indices in sides.items():
        found = [classes[i] for i in indices]
        num_images = Counter(chain.from_iterable(map(set, found)))
        num_objects = Counter(chain.from_iterable(found))
        cells: list[tuple] = [(num_images[k], num_objects[k]) for k in range(len(names))]
        cells += [(found.count([]), ""), (has_twin[indices].sum(), "")]
        cells += [(len(found), num_objects.total())]
        for row, (of_images, of_objects) in zip(rows, cells, strict=True):
            row |= {f"{side} images": of_images, f"{side} objects": of_objects}
    return rows
