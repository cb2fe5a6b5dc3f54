"""Where images come from: files, folders, globs, videos and webcams."""

import abc
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from ..engine import UserError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
DEFAULT_FRAME_RATE = 30.0  # of a camera or a file that tells none


class UnreadableError(Exception):
    """A file, or a camera, that gives no image; the message says why."""


@dataclass(frozen=True)
class Frame:
    """An image, (H, W, 3) uint8 BGR, and its number in its source, from 0."""

    image: np.ndarray
    source: "Source"
    number: int


class Source(abc.ABC):
    """Attributes: ``name`` for messages and json, ``path`` that results are named after."""

    name: str
    path: Path

    @abc.abstractmethod
    def frames(self) -> Iterator[Frame]:
        """
        Raises:
            UnreadableError: there is nothing to read.
        """

    def length(self) -> int | None:
        """Frames to expect, as far as that can be told beforehand."""
        return 1


class ImageFile(Source):
    """A picture, turned upright as its EXIF says (Detectron2's ``read_image``)."""

    def __init__(self, path: Path):
        self.name, self.path = str(path), path

    def frames(self) -> Iterator[Frame]:
        try:
            image = read_image(self.path, "BGR")
        # Pillow tells of damaged files by these, depending on the format.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise UnreadableError(reason) from error
        yield Frame(image, self, 0)


class Video(Source):
    """A video file. ``frame_rate``, a second, is known once the first frame is read."""

    frame_rate = DEFAULT_FRAME_RATE

    def __init__(self, path: Path):
        self.name, self.path = str(path), path
        self._place: str | int = str(path)  # as OpenCV wants it

    def frames(self) -> Iterator[Frame]:
        cv2 = import_cv2(f"reading {self.name}")
        capture = cv2.VideoCapture(self._place)
        number = 0
        try:
            self.frame_rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FRAME_RATE
            while (frame := capture.read())[0]:
                yield Frame(frame[1], self, number)
                number += 1
        finally:
            capture.release()
        if not number:
            raise UnreadableError("OpenCV finds no frame in it")

    def length(self) -> int | None:
        cv2 = import_cv2(f"reading {self.name}")
        capture = cv2.VideoCapture(self._place)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return max(count, 0)


class Webcam(Video):
    """The camera of a number, without end."""

    def __init__(self, number: int):
        super().__init__(Path(f"webcam{number}.mp4"))
        self.name, self._place = f"webcam {number}", number

    def length(self) -> int | None:
        return None


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """
    Args:
        inputs: each a file, a folder (all images and videos in it and below), a glob pattern, or
            the number of a webcam.

    Returns:
        Each source once, in the order of ``inputs``, those of a folder or pattern sorted. A file
        that does not exist is among them, and says so when it is read.

    Raises:
        UserError: a folder or a pattern without an image or video.
    """
    sources: dict[Path, Source] = {}
    for text in inputs:
        for source in _expand(text):
            sources.setdefault(source.path, source)
    return list(sources.values())


def _expand(text: str) -> list[Source]:
    path = Path(text)
    if path.is_file():
        return [_file(path)]
    if text.isdecimal():
        return [Webcam(int(text))]
    if path.is_dir():
        paths = [x for x in path.rglob("*") if x.is_file() and _is_readable(x)]
    elif glob.has_magic(text):
        paths = [Path(x) for x in glob.glob(text, recursive=True) if Path(x).is_file()]
    else:
        return [_file(path)]
    if not paths:
        raise UserError(f"{text}: no image and no video there")
    return [_file(x) for x in sorted(paths)]


def _file(path: Path) -> Source:
    return Video(path) if path.suffix.lower() in VIDEO_SUFFIXES else ImageFile(path)


def _is_readable(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in Image.registered_extensions()


def import_cv2(purpose: str) -> Any:
    """OpenCV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"{purpose} needs OpenCV: pip install opencv-python-headless, which is the extra "
            "focal_retina[opencv]"
        ) from error
    return cv2
