"""The augmentations of training: Detectron2's own where nothing else is asked for."""

import cv2
import numpy as np
import pytest
from detectron2 import model_zoo
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from helpers import default_cfg

from focal_retina.data.mapper import build_train_augmentation


def jitter(*options):
    return default_cfg("INPUT.LARGE_SCALE_JITTER.ENABLED", True, *options)


def describe(augmentations):
    """Classes and arguments: Detectron2 spells both out in the repr."""
    return [repr(x) for x in augmentations]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["INPUT.RANDOM_FLIP", "none"],
        ["INPUT.RANDOM_FLIP", "vertical"],
        ["INPUT.MIN_SIZE_TRAIN", (480, 640), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
        ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.7]],
    ],
)
def test_is_what_detectron2s_mapper_makes(options):
    cfg = default_cfg(*options)
    stock = DatasetMapper(cfg, is_train=True).augmentations.augs
    assert describe(build_train_augmentation(cfg)) == describe(stock)


def test_jitter_is_that_of_detectron2s_baselines():
    zoo = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
    (resize, crop, flip) = zoo.dataloader.train.mapper.augmentations
    expected = [
        T.ResizeScale(**{k: v for k, v in resize.items() if k != "_target_"}),
        T.FixedSizeCrop(crop_size=tuple(crop.crop_size)),
        T.RandomFlip(horizontal=flip.horizontal),
    ]
    assert describe(build_train_augmentation(jitter())) == describe(expected)


def test_jitter_leaves_crop_and_flip_as_they_are():
    cfg = jitter("INPUT.CROP.ENABLED", True, "INPUT.RANDOM_FLIP", "none")
    kinds = [type(x).__name__ for x in build_train_augmentation(cfg)]
    assert kinds == ["RandomCrop", "ResizeScale", "FixedSizeCrop"]


@pytest.mark.parametrize("scale", [0.1, 0.7, 2.0])
def test_jittered_objects_stay_on_their_pixels(tmp_path, scale):
    """One size of image whatever the scale, and the box still around the bright square."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[20:60, 30:90] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    annotation = {"bbox": [30, 20, 90, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [annotation]}
    cfg = jitter()
    cfg.INPUT.LARGE_SCALE_JITTER.update({"SIZE": 200, "MIN_SCALE": scale, "MAX_SCALE": scale})
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_train_augmentation(cfg))
    mapped = mapper(record)
    assert mapped["image"].shape == (3, 200, 200)
    (box,) = mapped["instances"].gt_boxes.tensor
    rows, columns = np.nonzero(mapped["image"][0].numpy() > 191)  # the padding is 128
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(box.numpy(), drawn, atol=2)


@pytest.mark.parametrize(
    "key, value", [("SIZE", 0), ("SIZE", -8), ("MIN_SCALE", 0.0), ("MIN_SCALE", 2.5)]
)
def test_what_makes_no_sense_is_an_error(key, value):
    with pytest.raises(ValueError, match=key):
        build_train_augmentation(jitter(f"INPUT.LARGE_SCALE_JITTER.{key}", value))
