"""What no training can mean: another kind of model, keys that do nothing, values out of range."""

import contextlib
import json
import logging
import math
from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from ..config import check_choice
from ..config_file import near_names
from ..data.classes import dataset_classes
from ..losses.ops import KERNELS
from ..modeling import FocalRetinaNet
from ..modeling.backbones import feature_shapes_of
from ..modeling.inference import INFERENCE_PRECISIONS

_logger = logging.getLogger(__name__)

# Sections of two-stage and segmentation models: a one-stage detector reads nothing of them.
_BOX_SECTIONS = ["RPN", "ROI_HEADS", "ROI_BOX_HEAD"]
_UNREAD_SECTIONS = [*_BOX_SECTIONS, "PROPOSAL_GENERATOR", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD"]
_UNREAD_SECTIONS += ["ROI_KEYPOINT_HEAD", "SEM_SEG_HEAD", "PANOPTIC_FPN"]
# What to set instead, for a box section's key where RETINANET has it under another name.
_COUNTERPARTS = {
    "ROI_BOX_HEAD.NUM_CONV": "MODEL.RETINANET.NUM_CONVS",
    "ROI_BOX_HEAD.SMOOTH_L1_BETA": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "RPN.NMS_THRESH": "MODEL.RETINANET.NMS_THRESH_TEST",
    "RPN.PRE_NMS_TOPK_TEST": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "RPN.POST_NMS_TOPK_TEST": "TEST.DETECTIONS_PER_IMAGE",
    "RPN.SMOOTH_L1_BETA": "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "SEM_SEG_HEAD.NUM_CLASSES": "MODEL.RETINANET.NUM_CLASSES",
}


def check_model(cfg: CfgNode) -> None:
    """A ValueError for what is no dense detector, or a backbone without its head's features."""
    name, registered = cfg.MODEL.META_ARCHITECTURE, dict(META_ARCH_REGISTRY)
    if name not in registered:
        hint = near_names(name, registered)
        raise ValueError(f"MODEL.META_ARCHITECTURE {name!r} is not a registered model{hint}")
    if not issubclass(registered[name], DenseDetector):
        what = f"MODEL.META_ARCHITECTURE {name} is no dense detector, such as FocalRetinaNet"
        start = "a RetinaNet config, such as configs/COCO/retinanet_R_50_FPN_1x.yaml"
        raise ValueError(f"{what}: start from {start}")
    if not issubclass(registered[name], FocalRetinaNet):
        if cfg.SOLVER.ACCUMULATE > 1:
            raise ValueError(f"SOLVER.ACCUMULATE above 1 needs FocalRetinaNet, not {name}")
        if cfg.TEST.LOSS:
            _logger.warning(f"TEST.LOSS is left out: {name} has none, FocalRetinaNet has")
    with torch.device("meta"):  # without memory and random numbers
        backbone = build_backbone(cfg)
    feature_shapes_of(backbone, cfg.MODEL.RETINANET.IN_FEATURES)


def check_keys(cfg: CfgNode) -> None:
    """A ValueError for changed keys that a RetinaNet does not read; it says what to set instead."""
    default = get_cfg().MODEL
    unread = [
        f"MODEL.{section}.{name} ({_advice(section, name, cfg)})"
        for section in _UNREAD_SECTIONS
        for name, value in cfg.MODEL[section].items()
        # As text, since a yaml turns a tuple into a list
        if json.dumps(value) != json.dumps(default[section].get(name))
    ]
    if unread:
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} does not read {'; '.join(unread)}")


def _advice(section: str, name: str, cfg: CfgNode) -> str:
    instead = _COUNTERPARTS.get(f"{section}.{name}")
    if section in _BOX_SECTIONS and name in cfg.MODEL.RETINANET:
        instead = f"MODEL.RETINANET.{name}"
    return f"set {instead} instead" if instead else "leave it out"


def _are_sizes(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_are_sizes, value))
    return value > 0


_PRECISIONS = ("auto", *INFERENCE_PRECISIONS)

# What values must be, and of which keys. NaN fails every comparison.
_RANGES = {
    "a positive number": (
        lambda x: 0 < x < math.inf,
        """MODEL.RETINANET.NUM_CLASSES MODEL.RETINANET.NUM_CONVS
        MODEL.RETINANET.TOPK_CANDIDATES_TEST INPUT.MAX_SIZE_TRAIN INPUT.MAX_SIZE_TEST
        TEST.DETECTIONS_PER_IMAGE SOLVER.IMS_PER_BATCH SOLVER.BASE_LR SOLVER.MAX_ITER
        SOLVER.CHECKPOINT_PERIOD SOLVER.ACCUMULATE""",
    ),
    "a number of 0 or more": (
        lambda x: 0 <= x < math.inf,
        """MODEL.RETINANET.SMOOTH_L1_LOSS_BETA INPUT.MIN_SIZE_TEST
        DATALOADER.NUM_WORKERS TEST.EVAL_PERIOD SOLVER.WEIGHT_DECAY SOLVER.WARMUP_ITERS
        SOLVER.WARMUP_FACTOR SOLVER.REFERENCE_WORLD_SIZE TEST.PATIENCE""",
    ),
    "a number from 0 to 1": (
        lambda x: 0 <= x <= 1,
        "MODEL.RETINANET.SCORE_THRESH_TEST MODEL.RETINANET.NMS_THRESH_TEST SOLVER.MOMENTUM",
    ),
    "at least 0 and below 1": (lambda x: 0 <= x < 1, "MODEL.FOCAL_RETINA.EMA_DECAY"),
    "a number between 0 and 1": (lambda x: 0 < x < 1, "MODEL.RETINANET.PRIOR_PROB"),
    "one or more positive numbers": (
        _are_sizes,
        """MODEL.ANCHOR_GENERATOR.SIZES MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.PIXEL_STD
        INPUT.MIN_SIZE_TRAIN""",
    ),
    " or ".join(_PRECISIONS): (
        lambda x: x in _PRECISIONS,
        "MODEL.FOCAL_RETINA.INFERENCE_PRECISION",
    ),
    " or ".join(KERNELS): (lambda x: x in KERNELS, "MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL"),
    "sum or avg": (lambda x: x in ("sum", "avg"), "MODEL.FPN.FUSE_TYPE"),
    "a normalization that Detectron2's get_norm has": (
        lambda x: x == "" or get_norm(x, 32),
        "MODEL.RETINANET.NORM MODEL.RESNETS.NORM MODEL.FPN.NORM",
    ),
}


def check_values(cfg: CfgNode) -> None:
    """A ValueError for values that no training can mean, such as a negative learning rate."""
    problems = []
    for description, (holds, keys) in _RANGES.items():
        for key in keys.split():
            value: Any = reduce(lambda node, name: node[name], key.split("."), cfg)
            with contextlib.suppress(TypeError, KeyError):  # a string among numbers, or a name
                if holds(value):
                    continue
            problems.append(f"{key} is {value!r}, not {description}")
    if problems:
        raise ValueError("; ".join(problems))


def check_best(cfg: CfgNode) -> None:
    """A ValueError where the training has no evaluations with the metric TEST.KEEP_BEST."""
    metric, sets = cfg.TEST.KEEP_BEST, cfg.DATASETS.TEST
    if not (metric or cfg.TEST.PATIENCE):
        return
    if not (metric and sets and cfg.TEST.EVAL_PERIOD):
        needed = "TEST.KEEP_BEST, such as bbox/AP, TEST.EVAL_PERIOD and DATASETS.TEST"
        raise ValueError(f"TEST.KEEP_BEST and PATIENCE compare evaluations: set {needed}")
    known = []
    for name in sets:
        classes = dataset_classes(name) or []
        ends = ["", "50", "75", "s", "m", "l", *(f"-{x}" for x in classes if len(classes) > 1)]
        known += [f"{name}/bbox/AP{x}" if len(sets) > 1 else f"bbox/AP{x}" for x in ends]
    check_choice("TEST.KEEP_BEST", metric, known)


def check_solver(cfg: CfgNode, world_size: int) -> None:
    """A ValueError for a batch that can't be divided among the processes; for SGD a warning of a
    learning rate that misfits the batch, both as SOLVER.REFERENCE_WORLD_SIZE scales them."""
    batch_size, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference:
        if batch_size % reference:
            message = f"is not divisible by SOLVER.REFERENCE_WORLD_SIZE {reference}"
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch_size} {message}")
        batch_size, rate = batch_size * world_size // reference, rate * world_size / reference
    if batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch_size} can't be divided among {world_size} processes"
        )
    fitting = 0.01 * batch_size / 16  # the paper's rate (section 4.1), scaled linearly
    is_off = max(rate / fitting, fitting / rate) > 2  # less is not worth a word
    if cfg.MODEL.FOCAL_RETINA.OPTIMIZER == "SGD" and is_off:
        _logger.warning(
            f"SOLVER.BASE_LR is {rate:g} for batches of {batch_size:d} images; scaled linearly "
            f"from RetinaNet's 0.01 for 16 it would be {fitting:g}"
        )
