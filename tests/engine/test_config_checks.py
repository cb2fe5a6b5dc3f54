"""Keys that do nothing, values that make no sense, and the learning rate."""

import operator
import re
from contextlib import nullcontext
from functools import reduce

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from helpers import MODELS, default_cfg, load
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.config_file import _keys_of, merge_config_file
from focal_retina.engine import config_checks
from focal_retina.engine.config_checks import check_keys, check_model, check_solver, check_values

NAMES = ["R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"]
ZOO = [model_zoo.get_config_file(f"COCO-Detection/retinanet_{name}.yaml") for name in NAMES]


def config(*options):
    model = ("MODEL.META_ARCHITECTURE", "FocalRetinaNet", "SOLVER.BASE_LR", 0.01)
    return default_cfg(*model, *options)


# --- keys that do nothing ---


@pytest.mark.parametrize(
    "key, value, instead",
    [
        ("ROI_HEADS.SCORE_THRESH_TEST", 0.3, "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("ROI_HEADS.NMS_THRESH_TEST", 0.3, "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("ROI_HEADS.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CLASSES"),
        ("RPN.IOU_THRESHOLDS", [0.3, 0.6], "MODEL.RETINANET.IOU_THRESHOLDS"),
        ("RPN.POST_NMS_TOPK_TEST", 50, "TEST.DETECTIONS_PER_IMAGE"),
    ],
)
def test_a_key_that_is_not_read_names_the_one_that_is(key, value, instead):
    message = f"FocalRetinaNet does not read MODEL.{key} (set {instead} instead)"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_keys(config(f"MODEL.{key}", value))


def test_all_of_them_are_listed_but_defaults_whether_tuple_or_list():
    cfg = config("MODEL.ROI_HEADS.NUM_CLASSES", 80)
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = list(get_cfg().MODEL.RPN.BBOX_REG_WEIGHTS)
    check_keys(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 3, 2
    with pytest.raises(ValueError, match=r"NUM_CLASSES.*ROI_MASK_HEAD.NUM_CONV \(leave it out\)"):
        check_keys(cfg)


def test_counterparts_are_keys_that_exist():
    known = set(_keys_of(config()))
    for key, instead in config_checks._COUNTERPARTS.items():
        assert f"MODEL.{key}" in known
        assert instead in known


@pytest.mark.parametrize("path", [*ZOO, *map(str, MODELS)])
def test_configs_that_exist_pass(path):
    cfg = config()
    merge_config_file(cfg, path)
    check_keys(cfg)
    check_values(cfg)
    check_solver(cfg, 1)


# --- values ---

_BAD = {
    "a positive number": [0, -1, float("nan"), float("inf")],
    "a number of 0 or more": [-1, float("nan")],
    "a number from 0 to 1": [-0.1, 1.5, float("nan")],
    "at least 0 and below 1": [-0.1, 1, float("nan")],
    "a number between 0 and 1": [0, 1, float("nan")],
    "one or more positive numbers": [[], [0], [[32, -1]], ["x"], [[]]],
    "auto or fp32 or bf16": ["fp16", "", 32],
    "auto or plain or numba or triton": ["cuda", "", 1],
    "sum or avg": ["max", "", 1],
    "a normalization that Detectron2's get_norm has": ["XN", 32],
}
_CASES = [
    (key, value)
    for description, (_, keys) in config_checks._RANGES.items()
    for key in keys.split()
    for value in _BAD[description]
]


@pytest.mark.parametrize("key, value", _CASES)
def test_values_that_no_training_can_mean(key, value):
    cfg = config()
    *path, name = key.split(".")
    reduce(operator.getitem, path, cfg)[name] = value
    with pytest.raises(ValueError, match=re.escape(f"{key} is {value!r}, not ")):
        check_values(cfg)


def test_keys_that_only_focal_retinanet_obeys(caplog):
    ours = ("MODEL.META_ARCHITECTURE", "FocalRetinaNet")
    cfg = load(ZOO[0], *ours, "SOLVER.ACCUMULATE", 2, "TEST.LOSS", True)
    check_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE above 1 needs FocalRetinaNet, not"):
        check_model(cfg)
    cfg.SOLVER.ACCUMULATE = 1
    assert not caplog.text
    check_model(cfg)
    assert "TEST.LOSS is left out: RetinaNet has none" in caplog.text


# --- batch size, processes, learning rate ---


def test_a_rate_that_misfits_the_batch_is_a_warning_with_the_scaled_value(caplog):
    check_solver(config("SOLVER.IMS_PER_BATCH", 2), 1)
    assert "BASE_LR is 0.01 for batches of 2 images" in caplog.text
    assert "would be 0.00125" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.00125),
        ("SOLVER.IMS_PER_BATCH", 12),
        ("SOLVER.IMS_PER_BATCH", 2, "MODEL.FOCAL_RETINA.OPTIMIZER", "AdamW"),
    ],
)
def test_a_rate_that_fits_is_none(caplog, options):
    check_solver(config(*options), 1)
    assert not caplog.text


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 64),
    reference=st.sampled_from([0, 1, 2, 4, 8]),
    world_size=st.sampled_from([1, 2, 3, 8]),
)
def test_reference_world_size_is_honoured_as_detectron2_does(batch, reference, world_size):
    cfg = config("SOLVER.IMS_PER_BATCH", batch, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    if reference and batch % reference:
        expected = pytest.raises(ValueError, match="not divisible by SOLVER.REFERENCE_WORLD_SIZE")
    elif DefaultTrainer.auto_scale_workers(cfg, world_size).SOLVER.IMS_PER_BATCH % world_size:
        expected = pytest.raises(ValueError, match="can't be divided among")
    else:
        expected = nullcontext()
    with expected:
        check_solver(cfg, world_size)
