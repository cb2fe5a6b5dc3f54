"""Where detections go: COCO json, pictures and videos in a folder. A writer takes the frames in
order; ``close`` makes whole what was written, after an interruption, too."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from ..engine import UserError
from ..files import atomic_write
from .meta import ModelMeta
from .sources import Frame, Source

_COLORS = colormap(rgb=True, maximum=1)


class CocoWriter:
    """One json with COCO's ``images``, ``categories`` and ``annotations``, which have a ``score``.
    Ids of images count from 1; a frame of a video has its number as ``frame``."""

    def __init__(self, path: Path, meta: ModelMeta):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._meta = path, meta
        # On the disk until the end: thousands of images, or a day of a webcam, fill no memory.
        self._sections = {
            name: tempfile.TemporaryFile("w+", dir=path.parent)  # noqa: SIM115
            for name in ("images", "annotations")
        }
        self._counts = dict.fromkeys(self._sections, 0)

    def write(self, frame: Frame, instances: Instances) -> None:
        height, width = frame.image.shape[:2]
        record = {"file_name": frame.source.name, "width": width, "height": height}
        self._add("images", record | ({"frame": frame.number} if frame.source.is_video else {}))
        for result in instances_to_coco_json(instances, self._counts["images"]):
            result["category_id"] = self._meta.category_ids[result["category_id"]]
            area = result["bbox"][2] * result["bbox"][3]
            self._add("annotations", {**result, "area": area, "iscrowd": 0})

    def _add(self, section: str, entry: dict[str, Any]) -> None:
        self._counts[section] += 1
        text = json.dumps({"id": self._counts[section], **entry})
        self._sections[section].write(text if self._counts[section] == 1 else f",\n{text}")

    def close(self) -> None:
        names = zip(self._meta.category_ids, self._meta.classes, strict=True)
        categories = json.dumps([{"id": i, "name": name} for i, name in names])
        with atomic_write(self._path, "w") as file:
            file.write(f'{{"categories": {categories}')
            for name, entries in self._sections.items():
                file.write(f',\n"{name}": [')
                entries.seek(0)
                shutil.copyfileobj(entries, file)
                file.write("]")
            file.write("}\n")


class PictureWriter:
    """Pictures and videos with the detections drawn into them, under the names of their sources."""

    def __init__(self, folder: Path, sources: Sequence[Source], classes: Sequence[str]):
        """``folder`` gets the tree of files that all ``sources`` have below their common folder. A
        UserError: a picture would take the place of its source."""
        self._folder, self._classes = folder, classes
        self._paths = output_paths(folder, sources)
        for source, path in self._paths.items():
            if path.resolve() == source.path.resolve():
                raise UserError(f"--output {folder}: {path} would be overwritten")
        self._video: tuple[Source, Any] | None = None

    def write(self, frame: Frame, instances: Instances) -> None:
        picture = draw_detections(frame.image, instances, self._classes)
        path = self._paths[frame.source]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not frame.source.is_video:
            Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1])).save(path)
            return
        if self._video is None or self._video[0] != frame.source:
            self.close()
            self._video = frame.source, self._open_video(frame, path)
        self._video[1].write(picture)

    def _open_video(self, frame: Frame, path: Path) -> Any:
        import cv2  # the package is imported without OpenCV

        code = cv2.VideoWriter.fourcc(*"mp4v")  # every build of OpenCV has it
        height, width = frame.image.shape[:2]
        video = cv2.VideoWriter(str(path), code, frame.rate, (width, height))
        if not video.isOpened():
            raise UserError(f"OpenCV can't write {path}: this build lacks MPEG-4 video")
        return video

    def close(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None


def draw_detections(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """A copy of the image, (H, W, 3) uint8 BGR, with boxes, names and scores. A class always has
    the same color."""
    found = zip(instances.pred_classes.tolist(), instances.scores, strict=True)
    picture = Visualizer(image[:, :, ::-1]).overlay_instances(
        boxes=instances.pred_boxes,
        labels=[f"{classes[i]} {score:.2f}" for i, score in found],
        assigned_colors=[_COLORS[i % len(_COLORS)] for i in instances.pred_classes.tolist()],
    )
    return np.ascontiguousarray(picture.get_image()[:, :, ::-1])


def output_paths(folder: Path, sources: Sequence[Source]) -> dict[Source, Path]:
    """A path for each source, no two the same; a webcam's is directly in the folder."""
    formats = Image.registered_extensions()
    parents = {x: os.path.abspath(x.path.parent) for x in sources if x.webcam is None}
    common = os.path.commonpath(parents.values()) if parents else os.curdir
    paths = {}
    for source in sources:
        path = folder / os.path.relpath(parents.get(source, common), common) / source.path.name
        is_kept = formats.get(path.suffix.lower()) in ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
        wanted = ".mp4" if source.is_video else path.suffix if is_kept else ".png"
        if path.suffix != wanted:  # added, so that a.mov and a.mp4 stay two
            path = path.with_name(path.name + wanted)
        paths[source] = path
    return paths
