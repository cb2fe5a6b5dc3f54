"""Reading COCO's instances format, with the entry and the field named where it is malformed.

What is checked here is the form that Detectron2 and pycocotools need to read the file at all.
Whether the content makes sense is the matter of :mod:`focal_retina.data.checks`.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

_SHOWN = 5  # malformed entries that a message lists


class _Kind(NamedTuple):
    description: str
    matches: Callable[[Any], bool]
    required: bool = True


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:  # json's integers have no bound
        return False
    return True


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_length(value: Any) -> bool:
    return _is_integer(value) and _is_number(value)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"counts", "size"} <= value.keys()
    return not value or (isinstance(value, list) and all(isinstance(x, list) for x in value))


_INTEGER = _Kind("an integer", _is_integer)
_LENGTH = _Kind("an integer", _is_length)
_ID = _Kind("an integer or a string", lambda value: _is_integer(value) or isinstance(value, str))
_STRING = _Kind("a string", lambda value: isinstance(value, str))
# NaN and Infinity are numbers here: the data checks count such boxes, and can leave them out.
_BOX = _Kind("four numbers [x, y, width, height]", _is_box)
_FLAG = _Kind("0 or 1", lambda value: value in (0, 1), required=False)
_ZERO = _Kind("0, all that Detectron2 reads", lambda value: value == 0, required=False)
_SEGMENTATION = _Kind("polygons or a run-length encoding", _is_segmentation, required=False)

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


def _load_sections(json_file: str) -> dict[str, Any]:
    """Load the json, and check that ``images``, ``annotations`` and ``categories`` are lists."""
    try:
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"{json_file} is not json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} is not COCO json: its top level is no object")
    for section in _FIELDS:
        if not isinstance(content.get(section), list):
            state = "is no list" if section in content else "is missing"
            raise ValueError(f'{json_file} is not COCO json: "{section}" {state}')
    return content


def _malformed_in(section: str, content: dict[str, Any]) -> Iterator[str]:
    """The first fault of each entry of a section that can't be read."""
    for index, entry in enumerate(content[section]):
        problem = _first_problem(entry, _FIELDS[section])
        if problem:
            yield f"{section}[{index}] {problem}"


def _first_problem(entry: Any, fields: dict[str, _Kind]) -> str | None:
    if not isinstance(entry, dict):
        return "is no object"
    for field, kind in fields.items():
        if field not in entry:
            if kind.required:
                return f'has no "{field}"'
        elif not kind.matches(entry[field]):
            return f'has "{field}" {_shorten(repr(entry[field]))}, which is not {kind.description}'
    return None


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Read a json file in COCO's instances format, and check that it is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not json, entries lack a field or have one of another type, or two
            categories share an id; the message names the file, the first entries and fields.
    """
    content = _load_sections(json_file)
    malformed = [entry for section in _FIELDS for entry in _malformed_in(section, content)]
    if malformed:
        cases = "; ".join(map(str, malformed[:_SHOWN]))
        more = f"; and {len(malformed) - _SHOWN} more" if len(malformed) > _SHOWN else ""
        raise ValueError(f"{json_file}: {cases}{more}")
    category_ids = [category["id"] for category in content["categories"]]
    if not category_ids or len(set(category_ids)) < len(category_ids):
        state = "holds an id twice" if category_ids else "is empty"
        raise ValueError(f'{json_file}: "categories" {state}')
    if len({type(image["id"]) for image in content["images"]}) > 1:
        raise ValueError(f'{json_file}: "images" has integers and strings as ids: use one of them')
    return content
