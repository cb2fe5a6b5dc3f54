"""The mapper against Detectron2's: equal, with OpenCV nearly equal pixels, and crowds kept."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from helpers import default_cfg
from PIL import Image

from focal_retina.data.mapper import DetectionMapper, build_test_mapper, build_train_mapper

ORIENTATION = 0x0112  # EXIF tag


def make_cfg(*overrides):
    return default_cfg("INPUT.MAPPER", "opencv", "INPUT.MIN_SIZE_TRAIN", (150,), *overrides)


def make_record(path, orientation=1, width=160, height=120):
    """A smooth picture with an edge, its size and objects as seen after turning."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) % 200], axis=2)
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(image.astype(np.uint8)).save(path, quality=95, exif=exif)
    if orientation >= 5:
        width, height = height, width
    boxes = [[10.5, 20, 60, 70], [0, 0, width, height]]
    annotations = [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": i,
            "iscrowd": i,
            "segmentation": [[1.0, 1, 5, 1, 5, 5]],
        }
        for i, box in enumerate(boxes)
    ]
    return {
        "file_name": str(path),
        "height": height,
        "width": width,
        "image_id": 7,
        "annotations": annotations,
    }


def map_both(cfg, record, seed=0):
    seed_all_rng(seed)
    expected = DatasetMapper(cfg, is_train=True)(copy.deepcopy(record))
    seed_all_rng(seed)
    return build_train_mapper(cfg)(record), expected


CROP = ("INPUT.CROP.ENABLED", True)
# 40 px: decoded at a half, then resized; 150 and 400: enlarged
SIZES = [("INPUT.MIN_SIZE_TRAIN", (side,)) for side in (40, 100, 150, 400)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("overrides", [*SIZES, CROP, ("INPUT.FORMAT", "RGB")])
def test_boxes_equal_detectron2s_and_pixels_nearly(tmp_path, orientation, overrides):
    cfg, record = make_cfg(*overrides), make_record(tmp_path / "a.jpg", orientation)
    before = copy.deepcopy(record)
    for seed in range(3):
        actual, expected = map_both(cfg, record, seed)
        assert record == before
        assert actual.keys() == expected.keys()
        assert actual["image"].shape == expected["image"].shape
        assert actual["image"].dtype == torch.uint8
        difference = (actual["image"].int() - expected["image"].int()).abs().float()
        assert difference.mean() < 3
        ours, stock = actual["instances"], expected["instances"]
        assert torch.equal(ours.gt_boxes.tensor, stock.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, stock.gt_classes)
        assert ours.image_size == stock.image_size


def test_large_scale_jitter_and_crowds(tmp_path):
    jitter = ("INPUT.LARGE_SCALE_JITTER.ENABLED", True, "INPUT.LARGE_SCALE_JITTER.SIZE", 128)
    crowd = ("MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH", 0.5)
    record = make_record(tmp_path / "a.jpg")
    seed_all_rng(0)
    stock = build_train_mapper(make_cfg("INPUT.MAPPER", "detectron2", *jitter, *crowd))
    assert isinstance(stock, DetectionMapper)
    expected = stock(copy.deepcopy(record))["instances"]
    seed_all_rng(0)
    sample = build_train_mapper(make_cfg(*jitter, *crowd))(record)
    assert sample["image"].shape == (3, 128, 128)
    assert torch.equal(sample["instances"].gt_boxes.tensor, expected.gt_boxes.tensor)
    assert torch.equal(sample["instances"].gt_is_crowd, expected.gt_is_crowd)


@pytest.mark.parametrize(
    "overrides", [CROP, ("INPUT.FORMAT", "L"), ("MODEL.MASK_ON", True), ("INPUT.FORMAT", "RGB")]
)
@pytest.mark.parametrize("is_train", [True, False])
def test_by_default_it_is_detectron2s(tmp_path, overrides, is_train):
    cfg = make_cfg("INPUT.MAPPER", "detectron2", *overrides)
    record = make_record(tmp_path / "a.jpg", orientation=6)
    before = copy.deepcopy(record)
    seed_all_rng(0)
    expected = DatasetMapper(cfg, is_train)(copy.deepcopy(record))
    seed_all_rng(0)
    actual = (build_train_mapper if is_train else build_test_mapper)(cfg)(record)
    assert record == before and actual.keys() == expected.keys()
    assert torch.equal(actual["image"], expected["image"])
    if is_train:
        ours, stock = actual["instances"], expected["instances"]
        assert ours.get_fields().keys() == stock.get_fields().keys()
        assert torch.equal(ours.gt_boxes.tensor, stock.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, stock.gt_classes)


def test_keeps_crowds_and_is_detectron2s_mapper_otherwise(tmp_path):
    cfg = make_cfg("INPUT.MAPPER", "detectron2")
    record = make_record(tmp_path / "a.jpg")
    crowds = ("MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH", 0.5)
    seed_all_rng(0)
    instances = build_train_mapper(make_cfg("INPUT.MAPPER", "detectron2", *crowds))(record)[
        "instances"
    ]
    seed_all_rng(0)
    stock = DatasetMapper(cfg, is_train=True)(copy.deepcopy(record))["instances"]
    assert instances.gt_is_crowd.tolist() == [False, True]
    assert torch.equal(instances[~instances.gt_is_crowd].gt_boxes.tensor, stock.gt_boxes.tensor)


SHAPES = [(1, 3000), (3000, 1), (700, 2), (1, 1)]  # height, width


@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
@pytest.mark.parametrize("options", [(), CROP, ("INPUT.LARGE_SCALE_JITTER.ENABLED", True)], ids=str)
@pytest.mark.parametrize("height, width", SHAPES)
def test_resized_sides_are_at_least_a_pixel(tmp_path, mapper, options, height, width):
    record = make_record(tmp_path / "a.jpg", width=width, height=height)
    cfg = make_cfg("INPUT.MAPPER", mapper, "INPUT.MAX_SIZE_TRAIN", 200, *options)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 100, 150
    assert min(build_train_mapper(cfg)(record)["image"].shape) >= 1
    tested = build_test_mapper(cfg)(record)
    assert 1 <= min(tested["image"].shape[1:]) <= 100
    augmented = DatasetMapperTTA(cfg)(tested)
    assert all(min(x["image"].shape) >= 1 for x in augmented)


DEEP = {
    "png": ((np.arange(12_000) * 5).reshape(120, 100).astype(np.uint16), True),
    "tif": ((np.arange(12_000) * 5).reshape(120, 100).astype(np.uint16), True),
    "float.tif": (np.ones((120, 100), np.float32), False),
    "int.tif": (np.ones((120, 100), np.int32), False),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
def test_16_bits_are_scaled_and_32_refused(tmp_path, kind, mapper):
    pixels, is_read = DEEP[kind]
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path)
    record = {"file_name": str(path), "height": 120, "width": 100, "annotations": []}
    cfg = make_cfg("INPUT.MAPPER", mapper, "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0)
    cfg.INPUT.RANDOM_FLIP = "none"
    for map_image in (build_train_mapper(cfg), build_test_mapper(cfg)):
        if is_read:
            np.testing.assert_array_equal(map_image(record)["image"][1].numpy(), pixels // 256)
        else:
            with pytest.raises(ValueError, match="32 bits.*convert"):
                map_image(record)


def test_the_limit_of_pixels_is_a_key(tmp_path):
    record = make_record(tmp_path / "a.jpg")
    try:
        with pytest.raises(ValueError, match=r"a\.jpg.*INPUT.MAX_IMAGE_PIXELS"):
            build_test_mapper(make_cfg("INPUT.MAX_IMAGE_PIXELS", 9_000))(record)
    finally:
        assert build_test_mapper(make_cfg())(record)["image"].shape[0] == 3


def test_record_without_size_gets_it_from_the_image(tmp_path):
    record = make_record(tmp_path / "a.jpg")
    del record["height"], record["width"]
    actual, expected = map_both(make_cfg(), record)
    assert (actual["height"], actual["width"]) == (expected["height"], expected["width"])


@pytest.mark.parametrize("side", [40, 150])
def test_another_size_than_annotated(tmp_path, side):
    record = make_record(tmp_path / "a.jpg") | {"width": 140}
    with pytest.raises(SizeMismatchError, match=r"a\.jpg"):
        build_train_mapper(make_cfg("INPUT.MIN_SIZE_TRAIN", (side,)))(record)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_file_is_an_error(tmp_path, damage):
    record = make_record(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    contents = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"no image"}
    (tmp_path / "a.jpg").write_bytes(contents[damage])
    with pytest.raises(OSError, match="truncated|cannot identify"):
        build_train_mapper(make_cfg())(record)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("INPUT.FORMAT", "L"), "INPUT.FORMAT"),
        (("MODEL.MASK_ON", True), "boxes only"),
        (("INPUT.MAPPER", "pillow"), "pillow.*detectron2, opencv"),
    ],
)
def test_what_it_cannot_do_is_an_error(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_train_mapper(make_cfg(*overrides))


def test_augmentation_that_it_cannot_follow(tmp_path):
    augmentations = [T.RandomBrightness(0.5, 0.6)]
    mapper = DetectionMapper(make_cfg(), is_train=True, augmentations=augmentations, opencv=True)
    with pytest.raises(ValueError, match="BlendTransform"):
        mapper(make_record(tmp_path / "a.jpg"))


def test_gray_png(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 160), 77, np.uint8))
    record = make_record(tmp_path / "b.jpg") | {"file_name": str(tmp_path / "a.png")}
    actual, expected = map_both(make_cfg(), record)
    assert torch.equal(actual["image"], expected["image"])
