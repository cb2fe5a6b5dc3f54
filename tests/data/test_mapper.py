"""The mapper against Detectron2's: equal, with OpenCV nearly equal pixels, and crowds kept."""

import copy

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from helpers import default_cfg
from PIL import Image

from focal_retina.config_file import merge_config_file
from focal_retina.data.mapper import (
    DetectionMapper,
    build_test_mapper,
    build_train_augmentation,
    build_train_mapper,
)

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
    polygon = {"segmentation": [[1.0, 1, 5, 1, 5, 5]], "bbox_mode": BoxMode.XYXY_ABS}
    boxes = [[10.5, 20, 60, 70], [0, 0, width, height]]
    annotations = [
        {"bbox": box, "category_id": i, "iscrowd": i, **polygon} for i, box in enumerate(boxes)
    ]
    size = {"height": height, "width": width, "image_id": 7}
    return {"file_name": str(path), "annotations": annotations, **size}


def map_both(cfg, record, seed=0, is_train=True):
    """By ours and Detectron2's mapper; boxes and classes are equal, and the record is unchanged."""
    seed_all_rng(seed)
    expected = DatasetMapper(cfg, is_train)(copy.deepcopy(record))
    before = copy.deepcopy(record)
    seed_all_rng(seed)
    actual = (build_train_mapper if is_train else build_test_mapper)(cfg)(record)
    assert record == before and actual.keys() == expected.keys()
    assert actual["image"].shape == expected["image"].shape
    if is_train:
        ours, stock = actual["instances"], expected["instances"]
        kept = ~ours.gt_is_crowd if ours.has("gt_is_crowd") else slice(None)
        assert ours.image_size == stock.image_size
        assert torch.equal(ours[kept].gt_boxes.tensor, stock.gt_boxes.tensor)
        assert torch.equal(ours[kept].gt_classes, stock.gt_classes)
    return actual, expected


CROP = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.3, 0.4])
# 40 px: decoded at a half, then resized; 150 and 400: enlarged
SIZES = [("INPUT.MIN_SIZE_TRAIN", (side,)) for side in (40, 100, 150, 400)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("overrides", [*SIZES, CROP, ("INPUT.FORMAT", "RGB")])
def test_boxes_equal_detectron2s_and_pixels_nearly(tmp_path, orientation, overrides):
    cfg, record = make_cfg(*overrides), make_record(tmp_path / "a.jpg", orientation)
    for seed in range(3):
        actual, expected = map_both(cfg, record, seed)
        assert actual["image"].dtype == torch.uint8
        assert (actual["image"].int() - expected["image"].int()).abs().float().mean() < 3


@pytest.mark.parametrize(
    "overrides", [CROP, ("INPUT.FORMAT", "L"), ("MODEL.MASK_ON", True), ("INPUT.FORMAT", "RGB")]
)
@pytest.mark.parametrize("is_train", [True, False])
def test_by_default_it_is_detectron2s(tmp_path, overrides, is_train):
    cfg = make_cfg("INPUT.MAPPER", "detectron2", *overrides)
    record = make_record(tmp_path / "a.jpg", orientation=6)
    actual, expected = map_both(cfg, record, is_train=is_train)
    assert torch.equal(actual["image"], expected["image"])
    if is_train:
        fields = (x["instances"].get_fields().keys() for x in (actual, expected))
        assert next(fields) == next(fields)


@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
def test_keeps_crowds_and_is_detectron2s_mapper_otherwise(tmp_path, mapper):
    cfg = make_cfg("INPUT.MAPPER", mapper, "MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH", 0.5)
    sample, _ = map_both(cfg, make_record(tmp_path / "a.jpg"))
    assert sample["instances"].gt_is_crowd.tolist() == [False, True]


def test_large_scale_jitter_is_the_same_with_opencv(tmp_path):
    jitter = ("INPUT.LARGE_SCALE_JITTER.ENABLED", True, "INPUT.LARGE_SCALE_JITTER.SIZE", 128)
    record = make_record(tmp_path / "a.jpg")
    samples = []
    for mapper in ("detectron2", "opencv"):
        seed_all_rng(0)
        samples.append(build_train_mapper(make_cfg("INPUT.MAPPER", mapper, *jitter))(record))
    assert [x["image"].shape for x in samples] == [(3, 128, 128)] * 2
    assert torch.equal(*(x["instances"].gt_boxes.tensor for x in samples))


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
    assert T.ResizeTransform(9, 9, 0, 5, interp=Image.Resampling.NEAREST).new_h == 1


@pytest.mark.parametrize(
    "name, dtype", [("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "f4"), ("a.tif", "i4")]
)
@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
def test_16_bits_are_scaled_and_32_refused(tmp_path, name, dtype, mapper):
    pixels = (np.arange(12_000) * 5).reshape(120, 100).astype(dtype)
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    record = {"file_name": str(path), "height": 120, "width": 100, "annotations": []}
    cfg = make_cfg("INPUT.MAPPER", mapper, "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0)
    cfg.INPUT.RANDOM_FLIP = "none"
    for map_image in (build_train_mapper(cfg), build_test_mapper(cfg)):
        if dtype == "u2":
            np.testing.assert_array_equal(map_image(record)["image"][1].numpy(), pixels // 256)
        else:
            with pytest.raises(ValueError, match="32 bits.*convert"):
                map_image(record)


def test_the_limit_of_pixels_is_a_key(tmp_path):
    record = make_record(tmp_path / "a.jpg")
    limited = "INPUT.MAX_IMAGE_PIXELS", 9_000
    mappers = [build_test_mapper(make_cfg(*limited))]
    mappers += [
        build_train_mapper(make_cfg("INPUT.MAPPER", x, *limited)) for x in ("detectron2", "opencv")
    ]
    try:
        for mapper in mappers:
            with pytest.raises(ValueError, match="INPUT.MAX_IMAGE_PIXELS raises"):
                mapper(record)
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


AUGMENTATIONS = [
    ["RandomRotation", {"angle": [-30, 30]}],
    ["RandomCrop", {"crop_type": "relative_range", "crop_size": [0.1, 0.1]}],
    ["RandomApply", {"tfm_or_aug": ["RandomFlip", {"prob": 1.0}], "prob": 0.5}],
    ["RandomContrast", {"intensity_min": 0.5, "intensity_max": 1.5}],
    ["RandomSaturation", {"intensity_min": 0, "intensity_max": 2}],
    ["RandomLighting", {"scale": 50}],
    ["RandomExtent", {"scale_range": [0.5, 1.5], "shift_range": [0.5, 0.5]}],
]


@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_augmentations_of_the_config_are_detectron2s(tmp_path, mapper, image_format):
    """They come last, boxes follow, and what is cut away is dropped; the colors are those of RGB
    whatever the format."""
    record = make_record(tmp_path / "a.png")
    cfg = make_cfg("INPUT.FORMAT", image_format, "INPUT.AUGMENTATIONS", AUGMENTATIONS)
    cfg.INPUT.MAPPER = mapper
    map_image = build_train_mapper(cfg)
    stock = [getattr(T, name)(**x) for name, x in AUGMENTATIONS if name != "RandomApply"]
    stock.insert(2, T.RandomApply(T.RandomFlip(1.0), 0.5))
    stock = [*build_train_augmentation(cfg), *stock]
    cfg.INPUT.FORMAT = "RGB"
    stock_map_image = DatasetMapper(cfg, is_train=True, augmentations=stock)
    counts = set()
    for seed in range(24):
        seed_all_rng(seed)
        expected = stock_map_image(copy.deepcopy(record))
        seed_all_rng(seed)
        actual = map_image(record)
        boxes, stock_boxes = (x["instances"].gt_boxes.tensor for x in (actual, expected))
        assert torch.equal(boxes, stock_boxes)
        counts.add(len(boxes))
        image = actual["image"].flip(0) if image_format == "BGR" else actual["image"]
        difference = (image.int() - expected["image"].int()).abs().float().mean()
        assert difference == 0 if mapper == "detectron2" else difference < 3
    assert counts == {0, 1}


@pytest.mark.parametrize(
    "spec, message",
    [
        ("RandomFlip", "'RandomFlip', which is not .NAME, .*RandomBrightness, RandomContrast"),
        (["RandomFlop", {}], "'RandomFlop'.*RandomFlip"),
        (["MinIoURandomCrop", {}], "one of FixedSizeCrop, "),
        (
            ["RandomBrightness", {"intensity": 1}],
            # Python 3.13 adds: Did you mean 'intensity_min'?
            r"'intensity'.*; its arguments are \(intensity_min, intensity_max\)",
        ),
        (["RandomSaturation", {"intensity_min": 1, "intensity_max": 2}], "only works on RGB"),
        (["RandomApply", {"tfm_or_aug": ["RandomFlop", {}]}], "'RandomFlop'"),
    ],
)
def test_augmentations_that_cannot_work_are_an_error_at_the_start(spec, message):
    cfg = make_cfg("INPUT.MAPPER", "detectron2", "INPUT.FORMAT", "L")
    cfg.INPUT.AUGMENTATIONS = [["RandomRotation", {"angle": [0, 0]}], spec]
    with pytest.raises(ValueError, match=f"INPUT.AUGMENTATIONS.*{message}"):
        build_train_mapper(cfg)
    state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    cfg.INPUT.AUGMENTATIONS.pop()
    build_train_mapper(cfg)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_augmentations_come_from_a_yaml_and_grey_images_are_rotated(tmp_path):
    keys = "MAPPER: detectron2, FORMAT: L, AUGMENTATIONS: [[RandomRotation, {angle: [5, 5]}]]"
    (tmp_path / "a.yaml").write_text(f"INPUT: {{{keys}}}")
    cfg = make_cfg()
    merge_config_file(cfg, str(tmp_path / "a.yaml"))
    assert cfg.INPUT.AUGMENTATIONS == [["RandomRotation", {"angle": [5, 5]}]]
    (tmp_path / "b.yaml").write_text(cfg.dump())
    merge_config_file(again := make_cfg(), str(tmp_path / "b.yaml"))
    assert again.INPUT.AUGMENTATIONS == cfg.INPUT.AUGMENTATIONS
    assert build_train_mapper(cfg)(make_record(tmp_path / "a.png"))["image"].shape[0] == 1


# --- large-scale jitter ---


def jitter(*options):
    return build_train_augmentation(default_cfg("INPUT.LARGE_SCALE_JITTER.ENABLED", True, *options))


def test_jitter_is_that_of_detectron2s_baselines():
    zoo = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
    (resize, crop, flip) = zoo.dataloader.train.mapper.augmentations
    expected = [
        T.ResizeScale(**{k: v for k, v in resize.items() if k != "_target_"}),
        T.FixedSizeCrop(crop_size=tuple(crop.crop_size)),
        T.RandomFlip(horizontal=flip.horizontal),
    ]
    assert repr(jitter()) == repr(expected)  # Detectron2 spells classes and arguments out


def test_jitter_leaves_crop_and_flip_as_they_are():
    found = jitter("INPUT.CROP.ENABLED", True, "INPUT.RANDOM_FLIP", "none")
    assert [type(x).__name__ for x in found] == ["RandomCrop", "ResizeScale", "FixedSizeCrop"]


@pytest.mark.parametrize("key, value", [("SIZE", 0), ("MIN_SCALE", 0.0), ("MIN_SCALE", 2.5)])
def test_jitter_that_makes_no_sense_is_an_error(key, value):
    with pytest.raises(ValueError, match=key):
        jitter(f"INPUT.LARGE_SCALE_JITTER.{key}", value)
