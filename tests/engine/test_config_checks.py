"""Keys that do nothing, values that make no sense, and the learning rate."""

import math
import operator
import re
from contextlib import nullcontext
from functools import reduce

import pytest
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from helpers import ZOO, default_cfg, load
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.config_file import _keys_of
from focal_retina.engine import config_checks
from focal_retina.engine.config_checks import check_keys, check_model, check_solver, check_values


def config(*options):
    model = ("MODEL.META_ARCHITECTURE", "FocalRetinaNet", "SOLVER.BASE_LR", 0.01)
    return default_cfg(*model, *options)


# --- keys that do nothing ---


@pytest.mark.parametrize(
    "key, value, instead",
    [
        ("ROI_HEADS.SCORE_THRESH_TEST", 0.3, "MODEL.RETINANET.SCORE_THRESH_TEST"),
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


# --- values ---


@pytest.mark.parametrize(
    "key, values",
    [
        ("SOLVER.BASE_LR", [0, -1, math.nan, math.inf]),
        ("SOLVER.WEIGHT_DECAY", [-1, math.nan]),
        ("SOLVER.MOMENTUM", [-0.1, 1.5, math.nan]),
        ("MODEL.FOCAL_RETINA.EMA_DECAY", [-0.1, 1, math.nan]),
        ("MODEL.RETINANET.PRIOR_PROB", [0, 1, math.nan]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[], [0], [[32, -1]], ["x"], [[]]]),
        ("MODEL.FOCAL_RETINA.INFERENCE_PRECISION", ["fp16", "", 32]),
        ("MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL", ["cuda", "", 1]),
        ("MODEL.FPN.FUSE_TYPE", ["max", "", 1]),
        ("MODEL.RESNETS.NORM", ["XN", 32]),
    ],
)
def test_values_that_no_training_can_mean(key, values):
    *path, name = key.split(".")
    for value in values:
        cfg = config()
        reduce(operator.getitem, path, cfg)[name] = value
        with pytest.raises(ValueError, match=re.escape(f"{key} is {value!r}, not ")):
            check_values(cfg)


def test_keys_that_only_focal_retinanet_obeys(caplog):
    ours = ("MODEL.META_ARCHITECTURE", "FocalRetinaNet")
    cfg = load(ZOO, *ours, "SOLVER.ACCUMULATE", 2, "TEST.LOSS", True)
    check_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE above 1 needs FocalRetinaNet, not"):
        check_model(cfg)
    cfg.SOLVER.ACCUMULATE = 1
    assert not caplog.text
    check_model(cfg)
    assert "TEST.LOSS is left out: RetinaNet has none" in caplog.text


# --- batch size, processes, learning rate ---


@pytest.mark.parametrize(
    "options, warning",
    [
        ("", None),
        ("SOLVER.IMS_PER_BATCH 2", "BASE_LR is 0.01 for batches of 2 .* would be 0.00125"),
        ("SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.00125", None),
        ("SOLVER.IMS_PER_BATCH 12", None),
        ("SOLVER.IMS_PER_BATCH 2 MODEL.FOCAL_RETINA.OPTIMIZER AdamW", None),
    ],
)
def test_a_rate_that_misfits_the_batch_is_a_warning_with_the_scaled_one(options, warning, caplog):
    check_solver(config(*options.split()), 1)
    assert re.search(warning, caplog.text) if warning else not caplog.text


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
