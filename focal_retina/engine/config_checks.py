"""Values that make no sense, keys that do nothing, and a learning rate that misfits the batch."""

import logging
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg

from ..modeling.inference import INFERENCE_PRECISIONS

_logger = logging.getLogger(__name__)

# Sections of two-stage and segmentation models: a one-stage detector reads nothing of them.
_UNREAD_SECTIONS = (
    "PROPOSAL_GENERATOR",
    "RPN",
    "ROI_HEADS",
    "ROI_BOX_HEAD",
    "ROI_BOX_CASCADE_HEAD",
    "ROI_MASK_HEAD",
    "ROI_KEYPOINT_HEAD",
    "SEM_SEG_HEAD",
    "PANOPTIC_FPN",
)
# What to set instead, below MODEL unless a full key.
_COUNTERPARTS = {
    "ROI_HEADS.NUM_CLASSES": "RETINANET.NUM_CLASSES",
    "ROI_HEADS.SCORE_THRESH_TEST": "RETINANET.SCORE_THRESH_TEST",
    "ROI_HEADS.NMS_THRESH_TEST": "RETINANET.NMS_THRESH_TEST",
    "ROI_HEADS.IOU_THRESHOLDS": "RETINANET.IOU_THRESHOLDS",
    "ROI_HEADS.IOU_LABELS": "RETINANET.IOU_LABELS",
    "ROI_HEADS.IN_FEATURES": "RETINANET.IN_FEATURES",
    "ROI_BOX_HEAD.NORM": "RETINANET.NORM",
    "ROI_BOX_HEAD.NUM_CONV": "RETINANET.NUM_CONVS",
    "ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "RETINANET.BBOX_REG_WEIGHTS",
    "ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "RETINANET.BBOX_REG_LOSS_TYPE",
    "ROI_BOX_HEAD.SMOOTH_L1_BETA": "RETINANET.SMOOTH_L1_LOSS_BETA",
    "RPN.IOU_THRESHOLDS": "RETINANET.IOU_THRESHOLDS",
    "RPN.IOU_LABELS": "RETINANET.IOU_LABELS",
    "RPN.IN_FEATURES": "RETINANET.IN_FEATURES",
    "RPN.NMS_THRESH": "RETINANET.NMS_THRESH_TEST",
    "RPN.PRE_NMS_TOPK_TEST": "RETINANET.TOPK_CANDIDATES_TEST",
    "RPN.POST_NMS_TOPK_TEST": "TEST.DETECTIONS_PER_IMAGE",
    "RPN.BBOX_REG_WEIGHTS": "RETINANET.BBOX_REG_WEIGHTS",
    "RPN.BBOX_REG_LOSS_TYPE": "RETINANET.BBOX_REG_LOSS_TYPE",
    "RPN.SMOOTH_L1_BETA": "RETINANET.SMOOTH_L1_LOSS_BETA",
    "SEM_SEG_HEAD.NUM_CLASSES": "RETINANET.NUM_CLASSES",
}


def check_keys(cfg: CfgNode) -> None:
    """Refuse keys that a RetinaNet does not read, where they differ from Detectron2's defaults.

    Raises:
        ValueError: there are such keys; the message names those to set instead.
    """
    default = get_cfg().MODEL
    unread = [
        key
        for section in _UNREAD_SECTIONS
        for key in _changed_keys(cfg.MODEL[section], default[section], section)
    ]
    if not unread:
        return
    advice = [
        f"MODEL.{key} (set {_full_key(_COUNTERPARTS[key])} instead)"
        if key in _COUNTERPARTS
        else f"MODEL.{key} (leave it out)"
        for key in unread
    ]
    raise ValueError(
        f"{cfg.MODEL.META_ARCHITECTURE} does not read {'; '.join(advice)}: "
        "what is set there would do nothing"
    )


def _full_key(key: str) -> str:
    return key if key.startswith("TEST.") else f"MODEL.{key}"


def _changed_keys(node: CfgNode, default: CfgNode, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode) and isinstance(default.get(name), CfgNode):
            yield from _changed_keys(value, default[name], f"{prefix}.{name}")
        # A yaml turns a tuple into a list
        elif name not in default or _as_tuple(value) != _as_tuple(default[name]):
            yield f"{prefix}.{name}"


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


class _Range(NamedTuple):
    description: str
    holds: Callable[[Any], bool]


def _numbers(description: str, holds: Callable[[Any], bool]) -> _Range:
    return _Range(description, lambda value: math.isfinite(value) and holds(value))


_POSITIVE = _numbers("a positive number", lambda x: x > 0)
_NOT_NEGATIVE = _numbers("a number of 0 or more", lambda x: x >= 0)
_FRACTION = _numbers("a number from 0 to 1", lambda x: 0 <= x <= 1)
_PROBABILITY = _numbers("a number between 0 and 1", lambda x: 0 < x < 1)
_SIZES = _Range(
    "one or more positive numbers", lambda x: bool(_flat(x)) and all(v > 0 for v in _flat(x))
)


def _one_of(choices: Collection[str]) -> _Range:
    return _Range(" or ".join(choices), lambda x: x in choices)


def _flat(value: Any) -> list[Any]:
    """The numbers of a number, a list of them, or a list of lists."""
    if isinstance(value, (list, tuple)):
        return [number for element in value for number in _flat(element)]
    return [value]


_RANGES = {
    "MODEL.FOCAL_RETINA.INFERENCE_PRECISION": _one_of(("auto", *INFERENCE_PRECISIONS)),
    "MODEL.RETINANET.NUM_CLASSES": _POSITIVE,
    "MODEL.RETINANET.NUM_CONVS": _NOT_NEGATIVE,
    "MODEL.RETINANET.PRIOR_PROB": _PROBABILITY,
    "MODEL.RETINANET.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.RETINANET.NMS_THRESH_TEST": _FRACTION,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _POSITIVE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
    "MODEL.ANCHOR_GENERATOR.SIZES": _SIZES,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _SIZES,
    "MODEL.PIXEL_STD": _SIZES,
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MAX_SIZE_TRAIN": _POSITIVE,
    "INPUT.MIN_SIZE_TEST": _NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TEST": _POSITIVE,
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "SOLVER.IMS_PER_BATCH": _POSITIVE,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.MAX_ITER": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": _POSITIVE,
    "SOLVER.MOMENTUM": _FRACTION,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": _NOT_NEGATIVE,
    "SOLVER.REFERENCE_WORLD_SIZE": _NOT_NEGATIVE,
    "TEST.DETECTIONS_PER_IMAGE": _POSITIVE,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
}


def check_values(cfg: CfgNode) -> None:
    """Refuse values that no training can mean, such as a negative learning rate.

    Raises:
        ValueError: the message names the keys, their values and what they should be.
    """
    problems = []
    for key, range_ in _RANGES.items():
        value: Any = cfg
        for name in key.split("."):
            value = value[name]
        try:
            holds = range_.holds(value)
        except TypeError:  # a string among numbers
            holds = False
        if not holds:
            problems.append(f"{key} is {value!r}, not {range_.description}")
    if problems:
        raise ValueError("; ".join(problems))


# The schedule of the paper (section 4.1) and of Detectron2's Base-RetinaNet.
_REFERENCE_LR, _REFERENCE_BATCH = 0.01, 16
# A rate that is off by more than this factor is worth a word.
_LR_TOLERANCE = 2.0


def scaled_learning_rate(batch_size: int) -> float:
    """The learning rate of SGD that fits a batch of so many images, by the linear scaling rule."""
    return _REFERENCE_LR * batch_size / _REFERENCE_BATCH


def check_solver(cfg: CfgNode, world_size: int) -> None:
    """Compare batch size, number of processes and learning rate.

    SOLVER.REFERENCE_WORLD_SIZE is honoured: what is compared is the config that Detectron2's
    ``auto_scale_workers`` makes of it, in which the batch and the rate have grown alike. The
    warning is for SGD only, since for AdamW there is no such rule.

    Args:
        cfg: after :func:`check_values`.
        world_size: the number of processes of the training.

    Raises:
        ValueError: the batch can't be divided among the processes.
    """
    batch_size, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and batch_size % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch_size} is not divisible by SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}, the number of processes that it is meant for"
        )
    if reference:
        batch_size, rate = batch_size * world_size // reference, rate * world_size / reference
    if batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch_size} can't be divided among {world_size} processes: "
            f"use a multiple of {world_size}"
        )
    fitting = scaled_learning_rate(batch_size)
    misfit = max(rate / fitting, fitting / rate)
    if cfg.MODEL.FOCAL_RETINA.OPTIMIZER == "SGD" and misfit > _LR_TOLERANCE:
        _logger.warning(
            "SOLVER.BASE_LR is %g for batches of %d images; scaled linearly from RetinaNet's %g "
            "for %d it would be %g",
            rate,
            batch_size,
            _REFERENCE_LR,
            _REFERENCE_BATCH,
            fitting,
        )
