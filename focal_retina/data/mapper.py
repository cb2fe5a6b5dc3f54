"""From a dataset dict to what the model sees.

With OpenCV boxes and random numbers are Detectron2's, and pixels come faster. Transforms are drawn
from the annotated size, so that a JPEG that will be shrunk to half or less is decoded at a half, a
quarter or an eighth. Flips cost nothing, as they are part of the one copy into the tensor.
"""

import importlib
import inspect
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.transforms import augmentation_impl
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import PadTransform

from ..config import check_choice
from .images import Mapper, build_corrupt_image_guard, limit_pixels, open_image, read_image
from .loader import seeded

# What _Size applies: views of one byte, for the most part
_CHEAP = (T.HFlipTransform, T.VFlipTransform, T.NoOpTransform, T.CropTransform, PadTransform)


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper that ``INPUT.MAPPER`` names, with crowds for ``LABELING.CROWD_IOA_THRESH``.
    ValueError: an unknown name, or a config that the mapper can't serve."""
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    name = cfg.INPUT.MAPPER
    check_choice("INPUT.MAPPER", name, ("detectron2", "opencv"))
    augmentations = build_train_augmentation(cfg)
    crowds = cfg.MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH is not None
    options = {"augmentations": augmentations, "keep_crowds": crowds, "opencv": name == "opencv"}
    num_channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    on_pixels = [build_augmentation(x, num_channels) for x in cfg.INPUT.AUGMENTATIONS]
    return DetectionMapper(cfg, is_train=True, on_pixels=on_pixels, **options)


def build_test_mapper(cfg: CfgNode) -> Mapper:
    """Detectron2's mapper of an evaluation, guarded against images that cannot be read; with
    TEST.LOSS the samples have their objects, too."""
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    augmentations = utils.build_augmentation(cfg, is_train=False)
    crowds = cfg.MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH is not None
    options = {"augmentations": augmentations, "keep_crowds": crowds}
    mapper = DetectionMapper(cfg, is_train=cfg.TEST.LOSS, **options)
    return build_corrupt_image_guard(cfg, mapper, is_train=False)


class RandomCrop(T.RandomCrop):
    """Detectron2's, which cuts a part of less than half a pixel to nothing."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


def build_train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's list: crop if ``INPUT.CROP.ENABLED``, resize the shortest edge, flip. With
    ``INPUT.LARGE_SCALE_JITTER`` the resizing is that of its LSJ baselines, whose images are all of
    one size: what is smaller is padded with gray. ValueError: a size or scales without sense."""
    augmentations = utils.build_augmentation(cfg, is_train=True)
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    if jitter.ENABLED:
        size, low, high = jitter.SIZE, jitter.MIN_SCALE, jitter.MAX_SCALE
        if not (size > 0 and 0 < low <= high):
            raise ValueError(
                f"INPUT.LARGE_SCALE_JITTER has SIZE {size} and scales from MIN_SCALE {low} to "
                f"MAX_SCALE {high}: they must be positive, the smaller scale first"
            )
        augmentations[:1] = [T.ResizeScale(low, high, size, size), T.FixedSizeCrop((size, size))]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return augmentations


# All but those that look at masks or boxes, which a mapper of Detectron2's does not show them
_UNUSABLE = {"RandomCrop_CategoryAreaConstraint", "MinIoURandomCrop"}
_AUGMENTATIONS = {x: getattr(T, x) for x in augmentation_impl.__all__ if x not in _UNUSABLE}
_AUGMENTATIONS["RandomCrop"] = RandomCrop


def build_augmentation(spec: Any, num_channels: int = 3) -> T.Augmentation:
    """Detectron2's augmentation of ``[NAME, {ARGUMENT: VALUE, …}]``; the ``tfm_or_aug`` of
    RandomApply is such a list, too. ValueError: no such name or argument, or the augmentation fails
    when it is tried on a small image of ``num_channels`` and a box."""
    match spec:
        case [str(name), dict(arguments)] if name in _AUGMENTATIONS:
            kind = _AUGMENTATIONS[name]
        case _:
            known = f"[NAME, {{ARGUMENT: VALUE, …}}], NAME being one of {', '.join(_AUGMENTATIONS)}"
            raise ValueError(f"INPUT.AUGMENTATIONS has {spec!r}, which is not {known}")
    if "tfm_or_aug" in arguments:
        inner = build_augmentation(arguments["tfm_or_aug"], num_channels)
        arguments = {**arguments, "tfm_or_aug": inner}
    try:
        augmentation = kind(**arguments)
        with seeded(0):
            image = T.AugInput(np.zeros((64, 64, num_channels), np.uint8))
            augmentation(image).apply_box(np.array([[8.0, 8, 32, 32]]))
    except Exception as error:  # of Detectron2, NumPy, OpenCV, Pillow …
        problem = f"{name}: {type(error).__name__} {error}"
        arguments_of = f"its arguments are {inspect.signature(kind)}"
        raise ValueError(f"INPUT.AUGMENTATIONS, {problem}; {arguments_of}") from error
    return augmentation


class DetectionMapper(DatasetMapper):
    """:class:`DatasetMapper` with images of :func:`~.images.read_image`. ``keep_crowds`` keeps
    COCO's ``iscrowd``, which Detectron2's drops, as ``gt_is_crowd`` of the ``instances``, bool
    (M,), beside boxes and classes. ``opencv`` decodes and resizes with OpenCV, so that pixels
    differ a little: boxes in images in BGR or RGB, which are resized, cropped, padded and flipped.
    ``on_pixels`` are augmentations that come last, for which an image in BGR is turned to RGB.
    """

    def __init__(
        self,
        *args: Any,
        keep_crowds: bool = False,
        opencv: bool = False,
        on_pixels: Sequence[T.Augmentation] = (),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._keep_crowds, self._opencv = keep_crowds, opencv
        self._on_pixels = T.AugmentationList(on_pixels)
        if self.proposal_topk:
            raise ValueError("MODEL.LOAD_PROPOSALS: a dense detector has no proposals")
        if not opencv:
            return
        importlib.import_module("cv2")  # before the loader sets its threads and forks data workers
        if self.image_format not in ("BGR", "RGB") or self.use_instance_mask or self.use_keypoint:
            allowed = "boxes only, no masks or keypoints, and INPUT.FORMAT BGR or RGB"
            raise ValueError(f"INPUT.MAPPER opencv: {allowed}, which is {self.image_format}")

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Errors: as of :func:`~.images.read_image`; SizeMismatchError: annotated otherwise."""
        sample = dict(dataset_dict)
        image, transforms = (self._by_opencv if self._opencv else self._by_pillow)(sample)
        if self._on_pixels.augs:
            channels = slice(None, None, -1 if self.image_format == "BGR" else 1)
            augmented = T.AugInput(np.ascontiguousarray(image[:, :, channels]))
            transforms = transforms + self._on_pixels(augmented)
            image = np.atleast_3d(augmented.image)[:, :, channels]  # OpenCV drops a single one
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
        transforms = self.augmentations(augmented := T.AugInput(image))
        return augmented.image, transforms

    def _by_opencv(self, sample: dict[str, Any]) -> tuple[np.ndarray, T.TransformList]:
        import cv2  # the package is imported without OpenCV

        if "height" not in sample or "width" not in sample:
            utils.check_image_size(sample, _read(sample["file_name"], 1)[0])  # fills them in
        size = sample["height"], sample["width"]
        transforms = self.augmentations(_Size(size))
        image, shrink = _read(sample["file_name"], _shrink(transforms))
        if image.shape[:2] != tuple(-(-side // shrink) for side in size):
            utils.check_image_size(sample, _read(sample["file_name"], 1)[0])
        for transform in transforms.transforms:
            if isinstance(transform, T.ResizeTransform):
                new, old = (transform.new_w, transform.new_h), image.shape[1::-1]
                how = cv2.INTER_AREA if math.prod(new) < math.prod(old) else cv2.INTER_LINEAR
                image = cv2.resize(image, new, interpolation=how)
            else:
                image = transform.apply_image(image)
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
        if isinstance(transform, T.TransformList):
            for part in transform.transforms:
                self.transform(part)
        elif isinstance(transform, T.ResizeTransform):
            self.image = np.broadcast_to(np.uint8(0), (transform.new_h, transform.new_w, 3))
        elif isinstance(transform, _CHEAP):
            self.image = transform.apply_image(self.image)
        else:
            raise ValueError(
                f"INPUT.MAPPER opencv has no way to apply {type(transform).__name__}: use "
                "augmentations that resize, crop, pad and flip, or INPUT.MAPPER detectron2"
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
    import cv2

    with PathManager.open(file_name, "rb") as file:
        data = file.read()
    if not data.startswith(b"\xff\xd8"):
        return read_image(file_name), 1
    open_image(io.BytesIO(data))  # which refuses too many pixels
    if b"\xff\xd9" not in data[-64:]:
        read_image(file_name)  # its end is missing: Pillow says so, OpenCV fills it with gray
    flag = cv2.IMREAD_COLOR if shrink == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{shrink}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise OSError(f"{file_name}: not an image that OpenCV can read")
    return image, shrink
