"""Images as files and arrays: one reader for all, and what an image that cannot be read means."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


def image_suffixes() -> set[str]:
    """Of what Pillow reads; it writes more, such as PDF."""
    return {x for x, name in Image.registered_extensions().items() if name in Image.OPEN}


def list_files(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Those below a folder, through linked ones, too, sorted; not what is hidden: copies of
    Jupyter's, "._" files of a Mac."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))  # a link may lead back
        unseen = (x for x in folders if os.path.realpath(Path(root, x)) not in seen)
        folders[:] = [x for x in unseen if x[0] != "."]
        found += [Path(root, x) for x in names if x[0] != "."]
    return sorted((x for x in found if x.suffix.lower() in suffixes), key=str)


def read_image(file_name: str, format: str = "BGR") -> np.ndarray:
    """Detectron2's ``read_image``, which takes pixels of more than 8 bits for white; here those of
    16 bits keep their upper 8, as in OpenCV. ValueError: pixels of 32 bits, or too many. OSError,
    SyntaxError and whatever else Pillow raises: the file is missing or damaged."""
    with PathManager.open(file_name, "rb") as file:
        image = open_image(file)
        is_deep = has_16_bits(image)
        image = utils._apply_exif_orientation(image)
        if is_deep:
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {image.mode}): convert them to 8 or 16 bits")
        return utils.convert_PIL_to_numpy(image, format)


def open_image(file: IO[bytes]) -> Image.Image:
    """Its header is read. ValueError: more pixels than :func:`limit_pixels` allows."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error}; INPUT.MAX_IMAGE_PIXELS raises the limit") from error


def has_16_bits(image: Image.Image) -> bool:
    """Whether gray values go to 65,535. (Pillow itself makes 8 bits of colours of 16.)"""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def limit_pixels(limit: int) -> None:
    """Refuse images of more pixels in this process: ``INPUT.MAX_IMAGE_PIXELS``."""
    Image.MAX_IMAGE_PIXELS = max(1, limit // 2)  # Pillow refuses twice that, and warns below
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


_init_resize = T.ResizeTransform.__init__


# Detectron2 resizes an image of 3000 × 1 pixels to a height of 0, at which Pillow fails. Mended
# for the process: its DefaultPredictor and DatasetMapperTTA make their transforms by themselves.
@functools.wraps(_init_resize)
def _init_resize_to_a_pixel(
    self: Any, h: int, w: int, new_h: int, new_w: int, interp: Any = None
) -> None:
    _init_resize(self, h, w, max(new_h, 1), max(new_w, 1), interp)


T.ResizeTransform.__init__ = _init_resize_to_a_pixel


class CorruptImageError(ValueError):
    """An image file that is missing, damaged, no image, or of another size than annotated."""

    def __init__(self, message: str):
        # A data worker's error arrives with its traceback before the message.
        super().__init__(message.rpartition("CorruptImageError: ")[2].strip())


@dataclass
class CorruptImageGuard:
    """A mapper round any mapper, which reads the image once that has failed: is it at fault?"""

    mapper: Mapper
    skip: bool  # leave corrupt images out, and log each once; else CorruptImageError
    image_format: str = "BGR"
    # What stands for an image left out: None, for which Detectron2's loader and ours take another
    # one; else a gray sample, which our COCOEvaluator counts and does not score
    is_train: bool = True

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        unread = dict(record)  # which mappers may change
        try:
            return self.mapper(record)
        except Exception as error:
            fault = _image_fault(unread, self.image_format)
            if fault is None:
                raise
            message = f"{unread['file_name']} (image id {unread.get('image_id', 'none')}): {fault}"
            if not self.skip:
                raise CorruptImageError(
                    f"{message}; repair or remove it, or set MODEL.FOCAL_RETINA.CORRUPT_IMAGES skip"
                ) from error
        log_first_n(logging.WARNING, f"skipped a corrupt image: {message}", key="message")
        if self.is_train:
            return None
        gray = torch.full((3, 64, 64), 128, dtype=torch.uint8)
        return {**unread, "image": gray, "height": 64, "width": 64, "is_unreadable": True}


def build_corrupt_image_guard(
    cfg: CfgNode, mapper: Mapper, *, is_train: bool = True
) -> CorruptImageGuard:
    """Wrap a mapper as ``MODEL.FOCAL_RETINA.CORRUPT_IMAGES`` says. In an evaluation
    ``DATA_CHECK.MODE`` skip, too, leaves corrupt images out."""
    mode = cfg.MODEL.FOCAL_RETINA.CORRUPT_IMAGES
    if mode not in ("stop", "skip"):
        raise ValueError(f"MODEL.FOCAL_RETINA.CORRUPT_IMAGES is {mode!r}; it can be stop or skip")
    skip = "skip" in (mode, None if is_train else cfg.MODEL.FOCAL_RETINA.DATA_CHECK.MODE)
    return CorruptImageGuard(mapper, skip, cfg.INPUT.FORMAT, is_train)


def _image_fault(record: dict[str, Any], image_format: str) -> str | None:
    if "file_name" not in record:
        return None
    try:
        height, width = read_image(record["file_name"], image_format).shape[:2]
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and more
        return in_one_line(error)
    annotated = record.get("width", width), record.get("height", height)
    if (width, height) != annotated:
        return "it is {} × {} pixels, annotated as {} × {}".format(width, height, *annotated)
    return None


def in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
