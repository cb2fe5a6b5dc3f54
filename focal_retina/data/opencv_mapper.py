"""Detectron2's mapper on OpenCV: the same boxes and random numbers, faster pixels.

Transforms are drawn from the annotated size, before the image is decoded. So a JPEG that will be
shrunk to half or less is decoded at a half, a quarter or an eighth, and flips cost nothing, as they
are part of the one copy into the tensor.
"""

from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import PadTransform

_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_KEEP_SIZE = (T.HFlipTransform, T.VFlipTransform, T.NoOpTransform)


class OpenCVMapper(DatasetMapper):
    """:class:`DatasetMapper` whose pixels differ a little: OpenCV decodes and resizes.

    Boxes, classes and image sizes are Detectron2's exactly, EXIF orientation included. For images
    in BGR or RGB, boxes, and augmentations that resize, crop, pad and flip.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.image_format not in ("BGR", "RGB"):
            raise ValueError(f"OpenCVMapper reads BGR or RGB, INPUT.FORMAT is {self.image_format}")
        if self.use_instance_mask or self.use_keypoint or self.proposal_topk:
            raise ValueError("OpenCVMapper knows boxes only: no masks, keypoints or proposals")

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See :class:`DatasetMapper`.

        Raises:
            OSError: the file can't be read as an image, or is cut short.
            SizeMismatchError: the image has another size than the annotation says.
        """
        sample = dict(dataset_dict)
        if "height" not in sample or "width" not in sample:
            utils.check_image_size(sample, _read(sample["file_name"], 1))  # fills them in
        transforms = self.augmentations(_Size((sample["height"], sample["width"])))
        shrink = _shrink(transforms)
        image = _read(sample["file_name"], shrink)
        annotated = sample["height"], sample["width"]
        if image.shape[:2] != tuple(-(-side // shrink) for side in annotated):
            utils.check_image_size(sample, _read(sample["file_name"], 1))
        for transform in transforms.transforms:
            image = _apply(transform, image)
        if self.image_format == "RGB":
            image = image[:, :, ::-1]
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

        annotations = sample.pop("annotations", None)
        if self.is_train and annotations is not None:
            sample["annotations"] = [dict(annotation) for annotation in annotations]
            self._transform_annotations(sample, transforms, image.shape[:2])
        return sample


class _Size(T.AugInput):
    """Lets augmentations draw their transforms, and keeps to the size that the image would have."""

    def __init__(self, size: tuple[int, int]):
        super().__init__(_blank(size))
        self._size = size

    def transform(self, transform: T.Transform) -> None:
        self._size = _size_after(transform, self._size)
        self.image = _blank(self._size)


def _blank(size: tuple[int, int]) -> np.ndarray:
    """An image of one byte."""
    return np.broadcast_to(np.uint8(0), (*size, 3))


def _size_after(transform: T.Transform, size: tuple[int, int]) -> tuple[int, int]:
    if isinstance(transform, T.TransformList):
        for part in transform.transforms:
            size = _size_after(part, size)
        return size
    if isinstance(transform, _KEEP_SIZE):
        return size
    if isinstance(transform, T.ResizeTransform):
        return transform.new_h, transform.new_w
    height, width = size
    if isinstance(transform, T.CropTransform):
        return min(transform.h, height - transform.y0), min(transform.w, width - transform.x0)
    if isinstance(transform, PadTransform):
        return height + transform.y0 + transform.y1, width + transform.x0 + transform.x1
    raise ValueError(
        f"OpenCVMapper has no way to apply {type(transform).__name__}: use augmentations that "
        "resize, crop, pad and flip, or INPUT.MAPPER detectron2"
    )


def _shrink(transforms: T.TransformList) -> int:
    """The greatest of 1, 2, 4, 8 by which decoding may shrink what a resizing shrinks anyway."""
    first = next((x for x in transforms.transforms if not isinstance(x, T.NoOpTransform)), None)
    if not isinstance(first, T.ResizeTransform):
        return 1
    room = min(first.h / first.new_h, first.w / first.new_w)
    return max(factor for factor in _READ_FLAGS if factor <= max(room, 1))


def _read(file_name: str, shrink: int) -> np.ndarray:
    """BGR image (H, W, 3) uint8, turned by its EXIF orientation, each side ceil(side / shrink)."""
    with PathManager.open(file_name, "rb") as file:
        data = file.read()
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-64:]:
        # A JPEG without its end, which OpenCV would fill with gray: Pillow says so, or reads it.
        utils.read_image(file_name, "BGR")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS[shrink]) if data else None
    if image is None:
        raise OSError(f"{file_name}: not an image that OpenCV can read")
    return image


def _apply(transform: T.Transform, image: np.ndarray) -> np.ndarray:
    if not isinstance(transform, T.ResizeTransform):
        return transform.apply_image(image)
    height, width = image.shape[:2]
    shrinks = transform.new_h * transform.new_w < height * width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (transform.new_w, transform.new_h), interpolation=interpolation)
