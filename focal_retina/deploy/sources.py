"""Where images come from: files, folders, globs, videos and webcams."""

import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import read_image
from ..engine import UserError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
DEFAULT_FRAME_RATE = 30.0  # of a camera or a file that does not say it


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
        rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FRAME_RATE
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
        suffixes = VIDEO_SUFFIXES | Image.registered_extensions().keys()
        paths = [x for x in path.rglob("*") if x.is_file() and x.suffix.lower() in suffixes]
    elif text.isdecimal() and not path.exists():
        return [Source(f"webcam {int(text)}", Path(f"webcam{int(text)}.mp4"), int(text))]
    elif glob.has_magic(text) and not path.exists():
        paths = [Path(x) for x in glob.glob(text, recursive=True) if Path(x).is_file()]
    else:
        paths = [path]
    if not paths:
        raise UserError(f"{text}: no image and no video there")
    return [Source(str(x), x) for x in sorted(paths)]
