"""From a dataset dict to what the model sees.

With OpenCV boxes and random numbers are Detectron2's, and pixels come faster. Transforms are drawn
from the annotated size, before the image is decoded. So a JPEG that will be shrunk to half or less
is decoded at a half, a quarter or an eighth, and flips cost nothing, as they are part of the one
copy into the tensor.
"""

import importlib
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import PadTransform

from .images import Mapper, build_corrupt_image_guard, limit_pixels, read_image

_KEEP_SIZE = (T.HFlipTransform, T.VFlipTransform, T.NoOpTransform)


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper that ``INPUT.MAPPER`` names, with the augmentations of
    :func:`build_train_augmentation`, and with crowds for ``LABELING.CROWD_IOA_THRESH``. ValueError:
    an unknown name, or a config that the mapper can't serve."""
    name = cfg.INPUT.MAPPER
    if name not in ("detectron2", "opencv"):
        raise ValueError(f"INPUT.MAPPER is {name!r}; it can be detectron2, opencv")
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    return DetectionMapper(
        cfg,
        is_train=True,
        augmentations=build_train_augmentation(cfg),
        keep_crowds=cfg.MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH is not None,
        opencv=name == "opencv",
    )


def build_test_mapper(cfg: CfgNode) -> Mapper:
    """Detectron2's mapper of an evaluation, guarded against images that cannot be read."""
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    return build_corrupt_image_guard(cfg, DetectionMapper(cfg, is_train=False), is_train=False)


class RandomCrop(T.RandomCrop):
    """Detectron2's, which cuts a part of less than half a pixel to nothing."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


def build_train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's list: crop if ``INPUT.CROP.ENABLED``, resize the shortest edge, flip.

    With ``INPUT.LARGE_SCALE_JITTER`` the resizing is that of Detectron2's LSJ baselines
    (``new_baselines`` in its zoo), whose images are all of one size: what is smaller is padded with
    gray. ValueError: a size or a range of scales that makes no sense.
    """
    augmentations = utils.build_augmentation(cfg, is_train=True)
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED:
        augmentations[:1] = _large_scale_jitter(cfg.INPUT.LARGE_SCALE_JITTER)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return augmentations


def _large_scale_jitter(node: CfgNode) -> list[T.Augmentation]:
    if node.SIZE <= 0:
        raise ValueError(f"INPUT.LARGE_SCALE_JITTER.SIZE is {node.SIZE}: it is a number of pixels")
    if not 0 < node.MIN_SCALE <= node.MAX_SCALE:
        raise ValueError(
            "INPUT.LARGE_SCALE_JITTER draws scales from MIN_SCALE to MAX_SCALE, which are "
            f"{node.MIN_SCALE} and {node.MAX_SCALE}: they must be positive, the smaller one first"
        )
    return [
        T.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, node.SIZE, node.SIZE),
        T.FixedSizeCrop((node.SIZE, node.SIZE)),
    ]


class DetectionMapper(DatasetMapper):
    """:class:`DatasetMapper` for boxes, masks and keypoints, with images of
    :func:`~.images.read_image`, with crowds or with OpenCV.

    Args:
        keep_crowds: keep crowd annotations (COCO's ``iscrowd``), which Detectron2's drops. Then
            ``instances`` carry ``gt_is_crowd``, bool (M,), beside boxes and classes.
        opencv: decode and resize with OpenCV, so that pixels differ a little. For images in BGR or
            RGB, boxes, and augmentations that resize, crop, pad and flip.
    """

    def __init__(self, *args: Any, keep_crowds: bool = False, opencv: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._keep_crowds = keep_crowds
        self._opencv = opencv
        if self.proposal_topk:
            raise ValueError("MODEL.LOAD_PROPOSALS: a dense detector has no proposals")
        if not opencv:
            return
        importlib.import_module("cv2")  # before the loader sets its threads and forks data workers
        if self.image_format not in ("BGR", "RGB"):
            raise ValueError(
                f"INPUT.MAPPER opencv reads BGR or RGB, INPUT.FORMAT is {self.image_format}"
            )
        if self.use_instance_mask or self.use_keypoint:
            raise ValueError("INPUT.MAPPER opencv: boxes only, no masks or keypoints")

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See :class:`DatasetMapper`. Errors are those of :func:`~.images.read_image`, and
        SizeMismatchError: the image has another size than the annotation says."""
        sample = dict(dataset_dict)
        image, transforms = (self._by_opencv if self._opencv else self._by_pillow)(sample)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        annotations = sample.pop("annotations", None)
        if self.is_train and annotations is not None:
            sample["annotations"] = [dict(annotation) for annotation in annotations]
            self._transform_annotations(sample, transforms, image.shape[:2])
        return sample

    def _by_pillow(self, sample: dict[str, Any]) -> tuple[np.ndarray, T.TransformList]:
        """The augmented image (H, W, C) and what was done to it; fills in a missing size."""
        image = read_image(sample["file_name"], self.image_format)
        utils.check_image_size(sample, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        return augmented.image, transforms

    def _by_opencv(self, sample: dict[str, Any]) -> tuple[np.ndarray, T.TransformList]:
        if "height" not in sample or "width" not in sample:
            utils.check_image_size(sample, _read(sample["file_name"], 1)[0])  # fills them in
        size = sample["height"], sample["width"]
        transforms = self.augmentations(_Size(size))
        image, shrink = _read(sample["file_name"], _shrink(transforms))
        if image.shape[:2] != tuple(-(-side // shrink) for side in size):
            utils.check_image_size(sample, _read(sample["file_name"], 1)[0])
        for transform in transforms.transforms:
            image = _apply(transform, image)
        return image[:, :, ::-1] if self.image_format == "RGB" else image, transforms

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple
    ) -> None:
        if not self._keep_crowds:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        annotations = dataset_dict.pop("annotations")
        is_crowd = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
        # Boxes alone: a crowd's segmentation is run-length encoded.
        boxes = [{k: x[k] for k in ("bbox", "bbox_mode", "category_id")} for x in annotations]
        boxes = [utils.transform_instance_annotations(x, transforms, image_shape) for x in boxes]
        instances = utils.annotations_to_instances(boxes, image_shape)
        instances.gt_is_crowd = torch.tensor(is_crowd, dtype=torch.bool)
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


class _Size(T.AugInput):
    """Lets augmentations draw their transforms: an image of one byte, of the size of the image."""

    image: np.ndarray

    def __init__(self, size: tuple[int, int]):
        super().__init__(np.broadcast_to(np.uint8(0), (*size, 3)))

    def transform(self, transform: T.Transform) -> None:
        size = _size_after(transform, self.image.shape[:2])
        self.image = np.broadcast_to(np.uint8(0), (*size, 3))


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
        f"INPUT.MAPPER opencv has no way to apply {type(transform).__name__}: use augmentations "
        "that resize, crop, pad and flip, or INPUT.MAPPER detectron2"
    )


def _shrink(transforms: T.TransformList) -> int:
    """The greatest of 1, 2, 4, 8 by which decoding may shrink what a resizing shrinks anyway."""
    first = next((x for x in transforms.transforms if not isinstance(x, T.NoOpTransform)), None)
    if not isinstance(first, T.ResizeTransform):
        return 1
    room = min(first.h / first.new_h, first.w / first.new_w)
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(room, 1))


def _read(file_name: str, shrink: int) -> tuple[np.ndarray, int]:
    """BGR image (H, W, 3) uint8, turned by its EXIF orientation, each side ceil(side / shrink), and
    by what it was shrunk: 1 if it is no JPEG, as OpenCV is not faster then."""
    import cv2  # the package is imported without OpenCV

    with PathManager.open(file_name, "rb") as file:
        data = file.read()
    if not data.startswith(b"\xff\xd8"):
        return read_image(file_name), 1
    if b"\xff\xd9" not in data[-64:]:
        # A JPEG without its end, which OpenCV would fill with gray: Pillow says so, or reads it.
        read_image(file_name)
    flag = cv2.IMREAD_COLOR if shrink == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{shrink}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise OSError(f"{file_name}: not an image that OpenCV can read")
    return image, shrink


def _apply(transform: T.Transform, image: np.ndarray) -> np.ndarray:
    import cv2

    if not isinstance(transform, T.ResizeTransform):
        return transform.apply_image(image)
    height, width = image.shape[:2]
    shrinks = transform.new_h * transform.new_w < height * width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (transform.new_w, transform.new_h), interpolation=interpolation)
