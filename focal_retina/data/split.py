"""A data set cut into training, validation and test images, with the classes spread evenly.

Iterative stratification (Sechidis et al., ECML 2011), of groups of images that stay together.
Shapes: N images, G groups, K classes and a last one, "no objects"; S sides, the training first.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from ..files import write_json
from .coco import read_coco_json
from .near_duplicates import hash_images, near_duplicate_groups


def split_images(
    classes: Sequence[Collection[int]],
    groups: NDArray[np.int64],
    fractions: Sequence[float],
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """Indices of the images of each side, ascending: a function of the arguments alone.

    Each class, rarest first, sends each of its groups to the side that lacks most of the class. The
    last group of a class goes to the first side that has none of it: so the training has all
    classes, and the validation those of two groups or more, unless images have many rare classes.

    Args:
        classes: the classes, 0 … K-1, of the objects of each of the N images.
        groups: (N,), equal where images must stay together.
        fractions: (S,), of the images for each side, positive.

    Raises:
        ValueError: fractions that are not positive or don't add up to 1; a side gets no image.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        shares = ", ".join(f"{x:g}" for x in fractions)
        raise ValueError(f"shares of the images {shares}: each must be positive, and 1 the sum")
    groups = np.unique(groups, return_inverse=True)[1]
    num_classes = 1 + max((max(x) for x in classes if x), default=-1)
    cells = [(g, k) for g, x in zip(groups, classes, strict=True) for k in set(x) or {num_classes}]
    rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    counts = coo_array((np.ones(len(rows), dtype=np.int64), (rows, columns))).tocsr()  # of images
    by_class, sizes = counts.tocsc(), np.bincount(groups)
    shares = np.array(fractions)[:, None]
    wanted, wanted_images = shares * counts.sum(axis=0), shares[:, 0] * len(classes)
    num_left = np.diff(by_class.indptr)  # groups of each class
    is_present = np.zeros(wanted.shape, dtype=bool)
    side_of = np.full(len(sizes), -1)
    lot = np.random.default_rng(seed).permutation(len(sizes))
    while (side_of < 0).any():
        rarest = np.where(num_left > 0, num_left, len(sizes) + 1).argmin()
        members = by_class.indices[by_class.indptr[rarest] : by_class.indptr[rarest + 1]]
        members = members[side_of[members] < 0]
        for group in members[np.lexsort((lot[members], -sizes[members]))]:  # large ones first
            cells_of_group = slice(counts.indptr[group], counts.indptr[group + 1])
            present = counts.indices[cells_of_group]
            is_needed = ~is_present[:, present[num_left[present] == 1]].all(axis=1)
            most_wanted = np.lexsort((wanted_images, wanted[:, rarest]))[-1]
            side = is_needed.argmax() if is_needed.any() else most_wanted
            side_of[group], is_present[side, present] = side, True
            wanted[side, present] -= counts.data[cells_of_group]
            wanted_images[side] -= sizes[group]
            num_left[present] -= 1
    sides = [np.flatnonzero(side_of[groups] == side) for side in range(len(fractions))]
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
    objects_of: dict[int | str, list[int]] = {x["id"]: [] for x in images}
    lost = [x["id"] for x in annotations if x["image_id"] not in objects_of]
    if lost or len(objects_of) < len(images):
        problem = f"annotation {lost[0]} has no image" if lost else "an image id occurs twice"
        raise ValueError(f"{json_file}: {problem}; focal-retina check lists such faults")
    ids = sorted({*names, *(x["category_id"] for x in annotations)})
    class_of = {category: index for index, category in enumerate(ids)}
    for x in annotations:
        if not x.get("iscrowd", 0):
            objects_of[x["image_id"]].append(class_of[x["category_id"]])
    objects = list(objects_of.values())
    hashes = hash_images([os.path.join(image_root, x["file_name"]) for x in images])
    groups = near_duplicate_groups(hashes)
    sides = split_images(objects, groups, list(fractions.values()), seed)
    output.mkdir(parents=True, exist_ok=True)
    for name, indices in zip(fractions, sides, strict=True):
        chosen = [images[i] for i in indices]
        image_ids = {x["id"] for x in chosen}
        of_them = [x for x in annotations if x["image_id"] in image_ids]
        content |= {"images": chosen, "annotations": of_them}
        write_json(output / f"{name}.json", content, indent=None)
    has_twin = np.bincount(groups)[groups] > 1
    rows: list[dict[str, object]] = [{"class": names.get(x, x)} for x in ids]
    rows += [{"class": x} for x in ("no objects", "near-duplicates", "all")]
    for name, indices in zip(fractions, sides, strict=True):
        found = [objects[i] for i in indices]
        num_objects = Counter(chain.from_iterable(found))
        num_images = Counter(chain.from_iterable(map(set, found)))
        of_images = [num_images[k] for k in range(len(ids))]
        of_images += [found.count([]), has_twin[indices].sum(), len(found)]
        of_objects = [*(num_objects[k] for k in range(len(ids))), "", "", num_objects.total()]
        for row, of_image, of_object in zip(rows, of_images, of_objects, strict=True):
            row |= {f"{name} images": of_image, f"{name} objects": of_object}
    return rows
