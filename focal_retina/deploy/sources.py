"""Where images come from: files, folders, globs, videos and webcams."""

import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data import read_image
from ..engine import UserError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
DEFAULT_FRAME_RATE = 30.0  # of a camera or a file that does not say it


class UnreadableError(Exception):
    """A file, or a camera, that gives no image; the message says why."""


@dataclass(frozen=True)
class Source:
    """An image, a video or a webcam."""

    name: str  # for messages and json
    path: Path  # what results are named after
    webcam: int | None = None  # the number of the camera, None for a file

    @property
    def is_video(self) -> bool:
        return self.webcam is not None or self.path.suffix.lower() in VIDEO_SUFFIXES

    def length(self) -> int | None:
        """Frames to expect; None for a webcam."""
        if self.webcam is not None:
            return None
        if not self.is_video:
            return 1
        cv2 = import_cv2(f"reading {self.name}")
        return max(int(cv2.VideoCapture(self.name).get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def frames(self) -> Iterator["Frame"]:
        """One or many, in order. UnreadableError: there is nothing to read."""
        return self._video_frames() if self.is_video else self._image()

    def _image(self) -> Iterator["Frame"]:
        try:
            image = read_image(str(self.path))  # turned upright as its EXIF says
        except Exception as error:  # Pillow's decoders raise nearly any
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise UnreadableError(reason) from error
        yield Frame(image, self)

    def _video_frames(self) -> Iterator["Frame"]:
        cv2 = import_cv2(f"reading {self.name}")
        capture = cv2.VideoCapture(self.name if self.webcam is None else self.webcam)
        rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FRAME_RATE
        for number in itertools.count():
            is_frame, image = capture.read()
            if not is_frame:
                break
            yield Frame(image, self, number, rate)
        if number == 0:
            raise UnreadableError("OpenCV finds no frame in it")


@dataclass(frozen=True)
class Frame:
    image: np.ndarray  # (H, W, 3) uint8, BGR
    source: Source
    number: int = 0  # in its source
    rate: float = DEFAULT_FRAME_RATE  # frames a second


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Each source once, in the order of ``inputs``, those of a folder or pattern sorted. A file
    that does not exist is among them; it can't be read.

    An input is a file, a folder (all images and videos in it and below), or, where there is no such
    file or folder, the number of a webcam or a glob pattern. A UserError: a folder or a pattern
    without an image or video.
    """
    return list(dict.fromkeys(source for text in inputs for source in _expand(text)))


def _expand(text: str) -> list[Source]:
    path = Path(text)
    if path.is_dir():
        paths = [x for x in path.rglob("*") if x.is_file() and _is_readable(x)]
    elif path.exists():
        paths = [path]
    elif text.isdecimal():
        return [Source(f"webcam {int(text)}", Path(f"webcam{int(text)}.mp4"), int(text))]
    elif glob.has_magic(text):
        paths = [Path(x) for x in glob.glob(text, recursive=True) if Path(x).is_file()]
    else:
        paths = [path]
    if not paths:
        raise UserError(f"{text}: no image and no video there")
    return [Source(str(x), x) for x in sorted(paths)]


def _is_readable(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in Image.registered_extensions()


def import_cv2(purpose: str) -> Any:
    """OpenCV; a UserError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"{purpose} needs OpenCV: pip install opencv-python-headless") from error
    return cv2
