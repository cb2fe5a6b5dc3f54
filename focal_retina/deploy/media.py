"""Where images come from (files, folders, globs, videos and webcams), and where detections go: COCO
json, pictures and videos. A writer takes the frames in order; ``close`` makes whole what was
written, after an interruption, too."""

import glob
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from matplotlib.colors import to_hex
from PIL import Image

from ..data.images import image_suffixes, list_files, read_image
from ..drawing import Outline, draw_outlines
from ..engine import UserError
from ..files import atomic_write
from .meta import ModelMeta

_COLORS = colormap(rgb=True, maximum=1)
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
DEFAULT_FRAME_RATE = 30.0  # of a camera or a file that does not say it
_MAX_FRAME_RATE = 1000  # above, it is the unit of a file's time stamps, such as 90,000


@dataclass(frozen=True)
class Source:
    """An image, a video or a webcam."""

    name: str  # for messages and json
    path: Path  # what results are named after
    webcam: int | None = None  # the number of the camera, None for a file

    @property
    def is_video(self) -> bool:
        return self.webcam is not None or self.path.suffix.lower() in VIDEO_SUFFIXES

    def length(self) -> int:
        """Frames to expect of a file."""
        if not self.is_video:
            return 1
        import cv2  # the package is imported without OpenCV

        return max(int(cv2.VideoCapture(self.name).get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def frames(self) -> Iterator["Frame"]:
        """One or many, in order. A file that can't be read raises nearly any error."""
        if not self.is_video:
            yield Frame(read_image(str(self.path)), self)  # turned upright as its EXIF says
            return
        import cv2

        capture = cv2.VideoCapture(self.name if self.webcam is None else self.webcam)
        rate = capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate <= _MAX_FRAME_RATE:
            rate = DEFAULT_FRAME_RATE
        for number in itertools.count():
            is_frame, image = capture.read()
            if not is_frame:
                break
            yield Frame(image, self, number, rate)
        if number == 0:
            raise ValueError("OpenCV finds no frame in it")


@dataclass(frozen=True)
class Frame:
    image: np.ndarray  # (H, W, 3) uint8, BGR
    source: Source
    number: int = 0  # in its source
    rate: float = DEFAULT_FRAME_RATE  # frames a second


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Each source once, in the order of ``inputs``, those of a folder or pattern sorted.

    An input is a file, a folder (all images and videos in it and below), or, where there is no such
    file or folder, the number of a webcam or a glob pattern; UserError: it has no image or video.
    """
    return list(dict.fromkeys(source for text in inputs for source in _expand(text)))


def _expand(text: str) -> list[Source]:
    path = Path(text)
    if path.is_dir():
        paths = [x for x in list_files(path, VIDEO_SUFFIXES | image_suffixes()) if x.is_file()]
    elif text.isdecimal() and not path.exists():
        return [Source(f"webcam {int(text)}", Path(f"webcam{int(text)}.mp4"), int(text))]
    elif glob.has_magic(text) and not path.exists():
        paths = [Path(x) for x in glob.glob(text, recursive=True) if Path(x).is_file()]
    else:
        paths = [path]
    if not paths:
        raise UserError(f"{text}: no image and no video there")
    return [Source(str(x), x) for x in sorted(paths)]


class CocoWriter:
    """One json with COCO's ``images``, ``categories`` and ``annotations``, which have a ``score``.
    Ids of images count from 1; a frame of a video has its number as ``frame``."""

    def __init__(self, path: Path, meta: ModelMeta):
        if path.is_dir():
            raise UserError(f"--json {path}: it is a folder: name a file")
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
        UserError: a picture would take the place of a source."""
        self._folder, self._classes = folder, classes
        self._paths = output_paths(folder, sources)
        originals = {x.path.resolve() for x in sources}
        for path in self._paths.values():
            if path.resolve() in originals:
                raise UserError(f"--output {folder}: {path}, an input, would be overwritten")
        self._video: tuple[Source, Any] | None = None

    def write(self, frame: Frame, instances: Instances) -> None:
        picture = draw_detections(frame.image, instances, self._classes)
        path = self._paths[frame.source]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not frame.source.is_video:
            Image.fromarray(picture).save(path)
            return
        if self._video is None or self._video[0] != frame.source:
            self.close()
            self._video = frame.source, self._open_video(frame, path)
        self._video[1].write(np.ascontiguousarray(picture[:, :, ::-1]))

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
    """The image, (H, W, 3) uint8 BGR, with boxes, names and scores, in RGB; a color a class."""
    fields = instances.pred_boxes, instances.pred_classes.tolist(), instances.scores.tolist()
    outlines = [
        Outline(box, to_hex(_COLORS[label % len(_COLORS)]), f"{classes[label]} {score:.2f}")
        for box, label, score in zip(*fields, strict=True)
    ]
    best_on_top, side = reversed(outlines), max(image.shape[:2])
    return draw_outlines(image[:, :, ::-1], best_on_top, longer_side=side)


def output_paths(folder: Path, sources: Sequence[Source]) -> dict[Source, Path]:
    """A path for each source; a webcam's is directly in the folder. UserError: two are the same."""
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
    for path, count in Counter(paths.values()).most_common(1):
        if count > 1:
            raise UserError(f"{path} would be the picture of {count} inputs: rename or omit one")
    return paths
