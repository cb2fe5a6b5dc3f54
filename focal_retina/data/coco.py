"""Data sets in COCO format: reading and registering them. Only the form of the json is checked;
:mod:`focal_retina.dataset_check` judges the content."""

import gc
import hashlib
import itertools
import json
import logging
import os
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..files import write_once
from .formats import convert_to_coco

_logger = logging.getLogger(__name__)

_SHOWN = 5  # malformed entries that a message lists
_LARGEST = 1e308  # json's integers have no bound, float64 has
SPEC = "NAME=ANNOTATIONS.json:IMAGE_DIR, or NAME=PATH of a COCO, YOLO, VOC or CVAT set"


def register_from_spec(spec: str) -> list[str]:
    """Register what `--register` names, see :func:`parse_registration`. Returns the names: NAME, or
    NAME_train, NAME_val and so on of a data set that comes in splits."""
    name, path, image_root = parse_registration(spec)
    if image_root or path.lower().endswith(".json"):
        register_coco_json(name, path, image_root)
        return [name]
    json_files, image_root = convert_to_coco(Path(path))
    names = {split: f"{name}_{split}" if split else name for split in json_files}
    for split, json_file in json_files.items():
        register_coco_json(names[split], json_file, image_root)
    return [*names.values()]


def parse_registration(spec: str) -> tuple[str, str, str | None]:
    """Name, annotations, and the image folder if one is named behind a colon. Paths may hold
    colons, and begin with `~`. ValueError: a part is missing. FileNotFoundError: a path leads
    nowhere."""
    name, _, paths = spec.partition("=")
    if not name.strip() or not paths:
        raise ValueError(f"cannot register {spec!r}: expected {SPEC}")
    if os.path.exists(data := os.path.expanduser(paths)):
        return name, data, None
    colons = [i for i, x in enumerate(paths) if x == ":" and paths[:i] and paths[i + 1 :]]
    splits = [tuple(map(os.path.expanduser, (paths[:i], paths[i + 1 :]))) for i in colons]
    existing = [x for x in splits if os.path.isfile(x[0]) and os.path.isdir(x[1])]
    json_file, image_root = (existing or splits or [(data, ".")])[-1]
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"cannot register {name!r}: no annotation file {json_file}")
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"cannot register {name!r}: no image folder {image_root}")
    return name, json_file, image_root


def register_coco_json(name: str, json_file: str, image_root: str | None = None) -> None:
    """Register a data set in COCO format with Detectron2, its classes known at once. Without
    ``image_root`` the images lie beside the file or in its ``images/``. ValueError: the file is not
    COCO json, or the name is taken by another set. FileNotFoundError: there is no first image."""
    if MetadataCatalog.get(name).get("announced"):
        MetadataCatalog.pop(name)  # the classes of a checkpoint; the set's own are known now
    original, json_file = json_file, _in_utf8(json_file)
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        same_root = image_root in (None, metadata.get("image_root"))
        if metadata.get("json_file") == json_file and same_root:
            return
        raise ValueError(f"the name {name!r} is taken by another data set: choose a new one")
    content = read_coco_json(original)
    image_root = image_root or _find_image_root(original, content["images"])
    # Detectron2 finds the same when it loads the set; the class count is checked before that.
    categories = content["categories"]
    classes = {
        "thing_classes": [c["name"] for c in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }
    register_coco_instances(name, classes, json_file, image_root)


def _find_image_root(json_file: str, images: list[dict[str, Any]]) -> str:
    folder = Path(json_file).parent
    names = [x["file_name"] for x in images[:1]]
    for root in (folder, folder / "images"):
        if all((root / x).is_file() for x in names):
            return str(root)
    raise FileNotFoundError(
        f"{json_file}: its first image, {names[0]}, is not beside it and not in images/: "
        "name the folder of the images, --register NAME=ANNOTATIONS.json:IMAGE_DIR"
    )


def _in_utf8(json_file: str) -> str:
    """The file, or, where it is UTF-16 or begins with a byte order mark, a copy of it that
    Detectron2 and pycocotools can read."""
    with open(json_file, "rb") as file:
        encoding = json.detect_encoding(start := file.read(4))
        if encoding == "utf-8":
            return json_file
        data = start + file.read()
    folder = Path(get_cache_dir(), "focal_retina", hashlib.sha256(data).hexdigest()[:16])

    def write(new: Path) -> None:  # Reading the original refuses odd bytes
        (new / "utf8.json").write_text(data.decode(encoding, "replace"), "utf-8")

    write_once(folder, write)
    _logger.info("%s is in %s: read through a copy in UTF-8, in %s", json_file, encoding, folder)
    return str(folder / "utf8.json")


def _are(values: list, *types: type) -> bool:
    are_small = (-_LARGEST < x < _LARGEST for x in values if type(x) is int)
    return set(map(type, values)) <= set(types) and all(are_small)


def _are_boxes(values: list) -> bool:
    is_box_shaped = _are(values, list) and set(map(len, values)) <= {4}
    return is_box_shaped and _are(list(itertools.chain(*values)), int, float)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"counts", "size"} <= value.keys()
    return not value or (isinstance(value, list) and _are(value, list))


# What a field is, and whether all of its values are that. Entry by entry takes ten times longer.
_Kind = tuple[str, Callable[[list], bool]]
_INTEGER: _Kind = "an integer", lambda values: _are(values, int)
_ID: _Kind = "an integer or a string", lambda values: _are(values, int, str)
_STRING: _Kind = "a string", lambda values: _are(values, str)

# What Detectron2 and pycocotools read of each entry. The data check judges NaN and Infinity.
_FIELDS: dict[str, dict[str, _Kind]] = {
    "images": {"id": _ID, "file_name": _STRING, "width": _INTEGER, "height": _INTEGER},
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _INTEGER,
        "bbox": ("four numbers [x, y, width, height]", _are_boxes),
        "iscrowd": ("0 or 1", lambda values: all(x in (0, 1) for x in values)),
        "ignore": ('0: use "iscrowd": 1', lambda values: all(x == 0 for x in values)),
        "segmentation": ("polygons or run lengths", lambda x: all(map(_is_segmentation, x))),
    },
    "categories": {"id": _INTEGER, "name": _STRING},
}
_OPTIONAL = ("iscrowd", "ignore", "segmentation")


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Read a json file in COCO's instances format, and check its form. Polygons that Detectron2 can
    read are emptied, as they take most of the memory and time. Annotations may be missing, as in
    COCO's test-dev. Categories come in the order of the classes, which is that of their ids.
    FileNotFoundError: there is no such file. ValueError: it is not json, or not in this form."""
    content = _load_sections(json_file)
    malformed = [
        f"{section}[{index}] {problem}"
        for section, fields in _FIELDS.items()
        if _first_problem(content[section], fields)
        for index, entry in enumerate(content[section])
        if (problem := _first_problem([entry], fields))
    ]
    if malformed:
        more = f"; and {len(malformed) - _SHOWN} more" if len(malformed) > _SHOWN else ""
        raise ValueError(f"{json_file}: {'; '.join(malformed[:_SHOWN])}{more}")
    categories = content["categories"]
    if not categories or len({x["id"] for x in categories}) < len(categories):
        raise ValueError(f'{json_file}: "categories" is empty or holds an id twice')
    categories.sort(key=lambda x: x["id"])
    if len({type(image["id"]) for image in content["images"]}) > 1:
        raise ValueError(f'{json_file}: "images" has integers and strings as ids: use one of them')
    return content


def _load_sections(json_file: str) -> dict[str, Any]:
    collects = gc.isenabled()
    gc.disable()  # the collector would look through millions of new dicts, again and again
    try:
        data = Path(PathManager.get_local_path(json_file)).read_bytes()
        # As bytes, of which json finds out whether they are UTF-8, UTF-16 or UTF-32
        content = json.loads(_POLYGONS.sub(_empty_if_readable, data))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"{json_file} is not json: {error}") from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} is not COCO json: its top level is not an object")
    content.setdefault("annotations", [])
    for section in _FIELDS:
        if not isinstance(content.get(section), list):
            raise ValueError(f'{json_file} is not COCO json: "{section}" is missing, or no list')
    return content


# A key and its lists of numbers: COCO's are 70% of the file, and as much of the time to parse it.
_POLYGONS = re.compile(rb'"segmentation":\s*\[((?:\s*\[[-+.\deE,\s]*\]\s*,?)+)\]')


def _empty_if_readable(segmentation: re.Match[bytes]) -> bytes:
    numbers_of = [x.partition(b"[")[2].count(b",") + 1 for x in segmentation[1].split(b"]")]
    is_readable = any(x >= 6 and x % 2 == 0 for x in numbers_of)
    return b'"segmentation":[]' if is_readable else segmentation[0]


def _first_problem(entries: list, fields: dict[str, _Kind]) -> str | None:
    """What is wrong with an entry, or that anything is wrong with many."""
    if not _are(entries, dict):
        return "is not an object"
    for name, (description, are_valid) in fields.items():
        values = [x[name] for x in entries if name in x]
        if len(values) < len(entries) and name not in _OPTIONAL:
            return f'has no "{name}"'
        if not are_valid(values):
            return f'has "{name}" {reprlib.repr(values[0])}, which is not {description}'
    return None
