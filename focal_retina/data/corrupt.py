"""An image that cannot be read in mid-training: stop and name it, or skip and count it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.data import detection_utils as utils

_logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


class CorruptImageError(ValueError):
    """An image file that is missing, damaged, no image, or of another size than annotated."""


class CorruptImageGuard:
    """A mapper round a mapper, for images that cannot be read.

    Whether it is the image's fault is found out by reading it, once the mapper has failed: so any
    mapper can be wrapped, and an error of an augmentation is never taken for a corrupt image.

    Args:
        mapper: a dataset dict to a sample.
        skip: return None for a corrupt image, for which Detectron2's loader and ours take another;
            the log names each file once. False: raise CorruptImageError with its file and id.
        image_format: as for :func:`detectron2.data.detection_utils.read_image`.
    """

    def __init__(self, mapper: Mapper, *, skip: bool, image_format: str):
        self.num_skipped = 0  # times that an image was skipped, in this process
        self._mapper = mapper
        self._skip = skip
        self._image_format = image_format
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
        return None


def build_corrupt_image_guard(cfg: Any, mapper: Mapper) -> CorruptImageGuard:
    """Wrap the mapper of ``DATASETS.TRAIN`` as ``MODEL.FOCAL_RETINA.CORRUPT_IMAGES`` says.

    Raises:
        ValueError: it says neither "stop" nor "skip".
    """
    mode = cfg.MODEL.FOCAL_RETINA.CORRUPT_IMAGES
    if mode not in ("stop", "skip"):
        raise ValueError(f"MODEL.FOCAL_RETINA.CORRUPT_IMAGES is {mode!r}; it can be stop or skip")
    return CorruptImageGuard(mapper, skip=mode == "skip", image_format=cfg.INPUT.FORMAT)


def _image_fault(record: Mapping[str, Any], image_format: str) -> str | None:
    """What is wrong with the image of a dataset dict; None if it reads well."""
    if "file_name" not in record:
        return None
    try:
        image = utils.read_image(record["file_name"], format=image_format)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and more
        return f"{type(error).__name__}: {error}"
    height, width = image.shape[:2]
    annotated = record.get("width", width), record.get("height", height)
    if (width, height) != annotated:
        return f"it is {width} × {height} pixels, annotated as {annotated[0]} × {annotated[1]}"
    return None
