"""Images as arrays: one reader for all, and what happens with an image that cannot be read."""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import Image

_logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]

UNREADABLE = "is_unreadable"  # the key of a sample that stands in for an image of an evaluation


def read_image(file_name: str, format: str = "BGR") -> np.ndarray:
    """Detectron2's ``read_image``, which takes pixels of more than 8 bits for white; here those of
    16 bits keep their upper 8, as in OpenCV.

    Raises:
        ValueError: pixels of 32 bits, whose range no format fixes, or too many pixels.
        OSError, SyntaxError and whatever else Pillow raises: the file is missing or damaged.
    """
    with PathManager.open(file_name, "rb") as file:
        try:
            image: Image.Image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; INPUT.MAX_IMAGE_PIXELS raises the limit") from error
        is_deep = has_16_bits(image)
        image = utils._apply_exif_orientation(image)
        if is_deep:
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"pixels of 32 bits (mode {image.mode}), whose range no format fixes: convert the "
                "image to 8 or 16 bits"
            )
        return utils.convert_PIL_to_numpy(image, format)


def has_16_bits(image: Image.Image) -> bool:
    """Whether gray values go to 65,535. (Pillow itself makes 8 bits of colours of 16.)"""
    return image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")  # which have no more
    )


def limit_pixels(limit: int) -> None:
    """Refuse images of more pixels in this process: ``INPUT.MAX_IMAGE_PIXELS``."""
    Image.MAX_IMAGE_PIXELS = max(1, limit // 2)  # Pillow refuses twice that, and warns below
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


_init_resize = T.ResizeTransform.__init__


@functools.wraps(_init_resize)
def _init_resize_to_a_pixel(self: Any, h: int, w: int, new_h: int, new_w: int, *args: Any) -> None:
    _init_resize(self, h, w, max(new_h, 1), max(new_w, 1), *args)


# Detectron2 resizes an image of 3000 × 1 pixels to a height of 0, at which Pillow fails. Mended
# for the process: its DefaultPredictor and DatasetMapperTTA make their transforms by themselves.
T.ResizeTransform.__init__ = _init_resize_to_a_pixel


class CorruptImageError(ValueError):
    """An image file that is missing, damaged, no image, or of another size than annotated."""

    def __init__(self, message: str):
        # A data worker's error arrives with its traceback before the message.
        super().__init__(message.rpartition("CorruptImageError: ")[2].strip())


class CorruptImageGuard:
    """A mapper round any mapper, for images that cannot be read. It finds out whether it is the
    image's fault by reading it once the mapper has failed.

    Args:
        mapper: a dataset dict to a sample.
        skip: leave a corrupt image out; the log names each file once. False: raise
            CorruptImageError with its file and id.
        image_format: as for :func:`read_image`.
        is_train: in the place of an image left out return None, for which Detectron2's loader and
            ours take another one. False: return a gray sample with ``is_unreadable``, which
            :class:`~focal_retina.evaluation.COCOEvaluator` counts and does not score.
    """

    def __init__(
        self, mapper: Mapper, *, skip: bool, image_format: str = "BGR", is_train: bool = True
    ):
        self.num_skipped = 0  # times that an image was skipped, in this process
        self._mapper = mapper
        self._skip = skip
        self._image_format = image_format
        self._is_train = is_train
        self._named: set[str] = set()

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        unread = dict(record)  # which mappers may change
        try:
            return self._mapper(record)
        except Exception as error:
            fault = _image_fault(unread, self._image_format)
            if fault is None:
                raise
            message = f"{unread['file_name']} (image id {unread.get('image_id', 'none')}): {fault}"
            if not self._skip:
                raise CorruptImageError(
                    f"{message}; repair or remove it, or set MODEL.FOCAL_RETINA.CORRUPT_IMAGES skip"
                ) from error
        self.num_skipped += 1
        if message not in self._named:
            self._named.add(message)
            _logger.warning("skipped a corrupt image: %s", message)
        if self._is_train:
            return None
        gray = torch.full((3, 64, 64), 128, dtype=torch.uint8)
        return {**unread, "image": gray, "height": 64, "width": 64, UNREADABLE: True}


def build_corrupt_image_guard(
    cfg: CfgNode, mapper: Mapper, *, is_train: bool = True
) -> CorruptImageGuard:
    """Wrap a mapper as ``MODEL.FOCAL_RETINA.CORRUPT_IMAGES`` says. In an evaluation
    ``DATA_CHECK.MODE`` skip, too, leaves corrupt images out."""
    node = cfg.MODEL.FOCAL_RETINA
    mode = node.CORRUPT_IMAGES
    if mode not in ("stop", "skip"):
        raise ValueError(f"MODEL.FOCAL_RETINA.CORRUPT_IMAGES is {mode!r}; it can be stop or skip")
    skip = mode == "skip" or (not is_train and node.DATA_CHECK.MODE == "skip")
    return CorruptImageGuard(mapper, skip=skip, image_format=cfg.INPUT.FORMAT, is_train=is_train)


def _image_fault(record: dict[str, Any], image_format: str) -> str | None:
    """What is wrong with the image of a dataset dict; None if it reads well."""
    if "file_name" not in record:
        return None
    try:
        image = read_image(record["file_name"], image_format)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and more
        return " ".join(f"{type(error).__name__}: {error}".split())
    height, width = image.shape[:2]
    annotated = record.get("width", width), record.get("height", height)
    if (width, height) != annotated:
        return f"it is {width} × {height} pixels, annotated as {annotated[0]} × {annotated[1]}"
    return None
