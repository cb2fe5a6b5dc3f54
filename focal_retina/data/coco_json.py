"""Reading COCO's instances format as it stands, with all faults of its content.

This module checks the form: what Detectron2 and pycocotools need to read the file at all. An error
names the entry and the field. :mod:`focal_retina.dataset_check` judges the content.
"""

import gc
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

_SHOWN = 5  # malformed entries that a message lists
_LARGEST = 1e308  # json's integers have no bound, float64 has


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
    """Read a json file in COCO's instances format, and check its form.

    Returns:
        The content. Polygons that Detectron2 can read are left out, as they take most of the
        memory.

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

    Args:
        content: of :func:`read_coco_json`; its annotations become part of the records.
        image_root: the images' folder.
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
            return f'has "{name}" {_shorten(repr(entry[name]))}, which is not {field.description}'
    return None


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
