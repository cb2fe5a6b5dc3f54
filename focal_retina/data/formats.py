"""Data sets in other formats, converted once to COCO json in a cache."""

import contextlib
import hashlib
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from detectron2.utils.logger import log_first_n
from iopath.common.file_io import get_cache_dir
from PIL import Image

from ..files import write_json, write_once
from . import format_readers
from .format_readers import LabelledImage, Notes, Plan

_logger = logging.getLogger(__name__)

_FORMATS = {
    ".yaml": format_readers.plan_yolo,
    ".yml": format_readers.plan_yolo,
    ".xml": format_readers.plan_cvat,
    "folder": format_readers.plan_voc,
}


def convert_to_coco(path: Path) -> tuple[dict[str, str], str]:
    """The COCO json of each split (of all, if there are none: ""), and the folder of the images. A
    copy in the cache serves as long as names, sizes and times of the files stay the same.
    ValueError: what is wrong, and in which file and line."""
    path = path.absolute()
    files, read = _plan(path)
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256(bytes(root))
    for code in (__file__, format_readers.__file__):  # other readers read again
        digest.update(Path(code).read_bytes())
    for file in files:
        with contextlib.suppress(OSError):
            x = file.stat()  # unzip and cp -p set mtime, and nobody ctime
            digest.update(repr((str(file), x.st_size, x.st_mtime_ns, x.st_ctime_ns)).encode())
    folder = Path(get_cache_dir(), "focal_retina", digest.hexdigest()[:16])

    def write(new: Path) -> None:
        notes: Notes = defaultdict(list)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # headers alone are read
        try:
            classes, splits = read(notes)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        if not classes or not any(splits.values()):
            raise ValueError(f"{path} has no {'images' if classes else 'objects of any class'}")
        notes["splits have no images and are left out"] = [x for x in splits if not splits[x]]
        splits = {x: images for x, images in splits.items() if images}
        for split, images in splits.items():
            write_json(new / f"{split or 'all'}.json", _to_coco(classes, images, root), indent=None)
        write_json(new / "index.json", {"splits": list(splits), "notes": notes})
        _logger.info("%s: read through a copy in COCO json, in %s", path, folder)

    write_once(folder, write)
    content = json.loads((folder / "index.json").read_text("utf-8"))
    told = content["notes"].items()
    if told := [f"{len(x)} {note} ({format_readers.examples(x)})" for note, x in told if x]:
        log_first_n(logging.WARNING, f"{path}: {'; '.join(told)}", key="message")
    return {x: str(folder / f"{x or 'all'}.json") for x in content["splits"]}, str(root)


def _plan(path: Path) -> Plan:
    inside = path / "data.yaml", path / "annotations.xml"
    path = next((x for x in inside if x.is_file()), path)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind not in _FORMATS:
        raise ValueError(
            f"{path} is no data set: there are COCO's .json, YOLO's data.yaml, CVAT's "
            "annotations.xml, and folders of Pascal VOC's .xml"
        )
    return _FORMATS[kind](path)


def _to_coco(
    classes: dict[Any, str], images: list[LabelledImage], root: Path
) -> dict[str, list[dict]]:
    ids = {key: number for number, key in enumerate(classes, 1)}
    entries: list[dict] = []
    annotations: list[dict] = []
    for image_id, (path, (width, height), objects) in enumerate(images, 1):
        name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for key, box, iscrowd in objects:
            new = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[key]}
            area = box[2] * box[3]
            annotations.append({**new, "bbox": box, "area": area, "iscrowd": iscrowd})
    categories = [{"id": ids[key], "name": name} for key, name in classes.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}
