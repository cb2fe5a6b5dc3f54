"""Data sets in COCO format: reading and registering them, and comparing classes with a config.

The json is read as it stands, with all faults of its content. Its form is checked: what Detectron2
and pycocotools need to read the file at all; an error names the entry and the field.
:mod:`focal_retina.dataset_check` judges the content.
"""

import difflib
import gc
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

_SHOWN = 5  # malformed entries that a message lists
_LARGEST = 1e308  # json's integers have no bound, float64 has
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
    if MetadataCatalog.get(name).get("announced"):
        MetadataCatalog.pop(name)  # the classes of a checkpoint; the set's own are known now
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
    """Class names of a registered data set, in the order of their contiguous ids: of the metadata,
    else of the annotation file. None if only loading the set tells them (it is not a COCO json).

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


class _Field(NamedTuple):
    description: str
    is_valid: Callable[[Any], bool]
    required: bool = True


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"counts", "size"} <= value.keys()
    return not value or (isinstance(value, list) and all(isinstance(x, list) for x in value))


_INTEGER = _Field("an integer", lambda x: type(x) is int)
_LENGTH = _Field("an integer", lambda x: type(x) is int and abs(x) < _LARGEST)
_ID = _Field("an integer or a string", lambda x: type(x) in (int, str))
_STRING = _Field("a string", lambda x: type(x) is str)
# NaN and Infinity are numbers here: the data check counts such boxes, and can leave them out.
_BOX = _Field(
    "four numbers [x, y, width, height]",
    lambda x: type(x) is list and len(x) == 4 and all(map(_is_number, x)),
)
_FLAG = _Field("0 or 1", lambda x: x in (0, 1), required=False)
_ZERO = _Field("0, all that Detectron2 reads", lambda x: x == 0, required=False)
_SEGMENTATION = _Field("polygons or a run-length encoding", _is_segmentation, required=False)

# What Detectron2 and pycocotools read of each entry.
_FIELDS = {
    "images": {"id": _ID, "file_name": _STRING, "width": _LENGTH, "height": _LENGTH},
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _INTEGER,
        "bbox": _BOX,
        "iscrowd": _FLAG,
        "ignore": _ZERO,
        "segmentation": _SEGMENTATION,
    },
    "categories": {"id": _INTEGER, "name": _STRING},
}


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Read a json file in COCO's instances format, and check its form. Polygons that Detectron2 can
    read are left out, as they take most of the memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not json, entries lack a field or have one of another type, or two
            categories share an id; the message names the file, the first entries and fields.
    """
    content = _load_sections(json_file)
    malformed = [
        f"{section}[{index}] {problem}"
        for section, fields in _FIELDS.items()
        for index, entry in enumerate(content[section])
        if (problem := _first_problem(entry, fields))
    ]
    if malformed:
        more = f"; and {len(malformed) - _SHOWN} more" if len(malformed) > _SHOWN else ""
        raise ValueError(f"{json_file}: {'; '.join(malformed[:_SHOWN])}{more}")
    category_ids = [category["id"] for category in content["categories"]]
    if not category_ids or len(set(category_ids)) < len(category_ids):
        state = "holds an id twice" if category_ids else "is empty"
        raise ValueError(f'{json_file}: "categories" {state}')
    if len({type(image["id"]) for image in content["images"]}) > 1:
        raise ValueError(f'{json_file}: "images" has integers and strings as ids: use one of them')
    return content


def raw_records(content: dict[str, Any], image_root: str) -> list[dict[str, Any]]:
    """Detectron2's records with everything that Detectron2's loader would drop or refuse.

    Category ids are those of the file, and annotations keep their ``id``. ``has_no_polygon`` says
    that an annotation's polygons have too few points. A last record without ``file_name`` holds the
    annotations of images that are not listed, if there are any.
    """
    records = [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "width": image["width"],
            "height": image["height"],
            "annotations": [],
        }
        for image in content["images"]
    ]
    annotations_of = {record["image_id"]: record["annotations"] for record in records}
    orphans: list[dict[str, Any]] = []
    for annotation in content["annotations"]:
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
        segmentation = annotation.get("segmentation")
        annotation["has_no_polygon"] = isinstance(segmentation, list) and bool(segmentation)
        annotations_of.get(annotation["image_id"], orphans).append(annotation)
    return [*records, {"annotations": orphans}] if orphans else records


def _load_sections(json_file: str) -> dict[str, Any]:
    """Load the json, and check that ``images``, ``annotations`` and ``categories`` are lists."""
    collects = gc.isenabled()
    gc.disable()  # the collector would look through millions of new dicts, again and again
    try:
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            content = json.load(file, object_hook=_drop_polygons)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"{json_file} is not json: {error}") from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} is not COCO json: its top level is not an object")
    for section in _FIELDS:
        if not isinstance(content.get(section), list):
            state = "is not a list" if section in content else "is missing"
            raise ValueError(f'{json_file} is not COCO json: "{section}" {state}')
    return content


def _drop_polygons(entry: dict[str, Any]) -> dict[str, Any]:
    """Remove a segmentation by polygons of which Detectron2 can read one."""
    polygons = entry.get("segmentation")
    if (
        type(polygons) is list
        and all(type(x) is list for x in polygons)
        and any(len(x) >= 6 and len(x) % 2 == 0 for x in polygons)
    ):
        del entry["segmentation"]
    return entry


def _first_problem(entry: Any, fields: dict[str, _Field]) -> str | None:
    if not isinstance(entry, dict):
        return "is not an object"
    for name, field in fields.items():
        if name not in entry:
            if field.required:
                return f'has no "{name}"'
        elif not field.is_valid(entry[name]):
            return f'has "{name}" {_cut(repr(entry[name]))}, which is not {field.description}'
    return None


def _cut(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
