"""Data sets in COCO format: registering them, and comparing their classes with a config."""

import difflib
import os
from collections.abc import Iterable
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .coco_json import read_coco_json

_SPEC = "NAME=ANNOTATIONS.json:IMAGE_DIR"


class Registration(NamedTuple):
    """What `--register` says."""

    name: str
    json_file: str
    image_root: str


def parse_registration(spec: str) -> Registration:
    """Take `NAME=ANNOTATIONS.json:IMAGE_DIR` apart. Paths may hold colons, and begin with `~`.

    Raises:
        ValueError: a part is missing.
        FileNotFoundError: there is no such file, or no such folder.
    """
    name, equals, paths = spec.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"cannot register {spec!r}: no name before '='; expected {_SPEC}")
    splits = [
        (os.path.expanduser(paths[:i]), os.path.expanduser(paths[i + 1 :]))
        for i, character in enumerate(paths)
        if character == ":" and paths[:i] and paths[i + 1 :]
    ]
    if not splits:
        raise ValueError(
            f"cannot register {spec!r}: annotations and image folder are to be separated by ':'; "
            f"expected {_SPEC}"
        )
    existing = [s for s in splits if os.path.isfile(s[0]) and os.path.isdir(s[1])]
    json_file, image_root = (existing or splits)[-1]
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"cannot register {name!r}: no annotation file {json_file}")
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"cannot register {name!r}: no image folder {image_root}")
    return Registration(name, json_file, image_root)


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """Register a data set in COCO format with Detectron2, its classes known at once.

    The same registration a second time changes nothing.

    Raises:
        ValueError: the file is not COCO json, or the name stands for another data set.
    """
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
            return
        raise ValueError(f"the name {name!r} is taken by another data set: choose a new one")
    categories = sorted(read_coco_json(json_file)["categories"], key=lambda c: c["id"])
    # Detectron2 finds the same when it loads the set; the class count is checked before that.
    classes = {
        "thing_classes": [c["name"] for c in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }
    register_coco_instances(name, classes, json_file, image_root)


def register_from_spec(spec: str) -> None:
    """Register what `--register` names: :func:`parse_registration`, :func:`register_coco_json`."""
    register_coco_json(*parse_registration(spec))


def dataset_classes(name: str) -> list[str] | None:
    """Class names of a registered data set, in the order of their contiguous ids.

    They come from the metadata if those hold them, else from the annotation file.

    Returns:
        The names, or None if only loading the set tells them (it is not a COCO json).

    Raises:
        ValueError: the data set is not registered.
        FileNotFoundError: its annotation file does not exist.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"no data set {name!r} is registered{hint}; --register {_SPEC} adds one")
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is not None and not metadata.get("generated", False):
        _require_file(name, json_file)
    classes = metadata.get("thing_classes")
    if classes is None and json_file is not None:
        categories = read_coco_json(json_file)["categories"]
        classes = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    return classes


def _require_file(name: str, json_file: str) -> None:
    if "://" in json_file or os.path.isfile(json_file):  # a URL is fetched at loading
        return
    root = os.getenv("DETECTRON2_DATASETS")
    where = f"DETECTRON2_DATASETS is {root}" if root else "DETECTRON2_DATASETS is not set"
    raise FileNotFoundError(
        f"data set {name!r}: no annotation file {json_file} ({where}); put it there, or set "
        "DETECTRON2_DATASETS to the folder that holds your data sets"
    )


def check_num_classes(num_classes: int, dataset_names: Iterable[str]) -> None:
    """Compare MODEL.RETINANET.NUM_CLASSES with the data sets, and these with each other.

    Raises:
        ValueError: they disagree; the message gives the right number.
        ValueError, FileNotFoundError: as :func:`dataset_classes`.
    """
    first: tuple[str, list[str]] | None = None
    for name in dataset_names:
        classes = dataset_classes(name)
        if classes is None:
            continue
        if len(classes) != num_classes:
            raise ValueError(
                f"MODEL.RETINANET.NUM_CLASSES is {num_classes} but {name} has {len(classes)} "
                f"categories ({_shorten(classes)}): set MODEL.RETINANET.NUM_CLASSES {len(classes)}"
            )
        first = first or (name, classes)
        if classes != first[1]:
            raise ValueError(
                f"{name} and {first[0]} have different categories ({_shorten(classes)}; "
                f"{_shorten(first[1])}): data sets used together must agree in names and order"
            )


def _shorten(names: list[str], limit: int = 10) -> str:
    return ", ".join([*names[:limit], "…"] if len(names) > limit else names)
