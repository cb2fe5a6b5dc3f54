"""What a RetinaNet's weights mean and do not say themselves: a config of Detectron2, as spec."""

import itertools
import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor

from ..config import add_focal_retina_config

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7
TOP_BLOCK_BACKBONE = "build_resnet_fpn_backbone_with_top_block"
_BACKBONE = "build_retinanet_resnet_fpn_backbone"
_RETINANET = {
    "MODEL.META_ARCHITECTURE": "FocalRetinaNet",
    "MODEL.BACKBONE.NAME": _BACKBONE,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
}
# What else a written config states
_KEYS = (
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.RESNETS.NUM_GROUPS",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.FPN.NORM",
    "MODEL.FPN.OUT_CHANNELS",
    "MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE",
    "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU",
    "MODEL.FOCAL_RETINA.NORMALIZER.MODE",
    "MODEL.ANCHOR_GENERATOR.NAME",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CONVS",
    "MODEL.RETINANET.NORM",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
)


def make_spec(values: Mapping[str, Any]) -> CfgNode:
    """Detectron2's RetinaNet with other values of some keys."""
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.merge_from_list(list(itertools.chain(*(_RETINANET | dict(values)).items())))
    return cfg


def spec_from_config(cfg: CfgNode) -> CfgNode:
    """The config of a model as a spec: a copy with sizes for each level.

    Raises:
        ValueError: the model is no RetinaNet on P3 to P7 of a ResNet.
    """
    spec = cfg.clone()
    spec.defrost()
    generator = spec.MODEL.ANCHOR_GENERATOR
    if spec.MODEL.BACKBONE.NAME == _BACKBONE:
        spec.MODEL.FOCAL_RETINA.TOP_BLOCK = CfgNode({"IN_FEATURE": "res5", "RELU": True})
    elif spec.MODEL.BACKBONE.NAME != TOP_BLOCK_BACKBONE:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {spec.MODEL.BACKBONE.NAME!r}; weights can be converted with "
            f"{_BACKBONE}, {TOP_BLOCK_BACKBONE}"
        )
    if len(generator.ASPECT_RATIOS) != 1:
        raise ValueError("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS differ between levels")
    if len(generator.SIZES) not in (1, len(STRIDES)):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.SIZES is for {len(generator.SIZES)} levels, not 5"
        )
    if len(generator.SIZES) == 1:
        generator.SIZES = generator.SIZES * len(STRIDES)
    return spec


def settings_of(spec: CfgNode) -> dict[str, Any]:
    """What a yaml has to say so that a config becomes ``spec``, as nested dicts."""
    settings: dict[str, Any] = {"VERSION": 2}
    for key in (*_RETINANET, *_KEYS):
        *nodes, name = key.split(".")
        inner = settings
        for node in nodes:
            inner = inner.setdefault(node, {})
        inner[name] = attrgetter(key)(spec)
    return json.loads(json.dumps(settings))  # lists instead of tuples


def anchors_per_position(spec: CfgNode) -> int:
    generator = spec.MODEL.ANCHOR_GENERATOR
    return len(generator.SIZES[0]) * len(generator.ASPECT_RATIOS[0])


def first_boxes(spec: CfgNode) -> Tensor:
    """The anchors (5, A, 4) of the first position of each level, in pixels."""
    generator = build_anchor_generator(spec, [ShapeSpec(stride=stride) for stride in STRIDES])
    offsets = spec.MODEL.ANCHOR_GENERATOR.OFFSET * torch.tensor(STRIDES)
    return torch.stack(list(generator.cell_anchors)) + offsets.view(-1, 1, 1)


def pixels_in_order(spec: CfgNode, order: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std per channel, where ``INPUT.FORMAT`` were ``order``."""
    step = 1 if order == spec.INPUT.FORMAT else -1
    return spec.MODEL.PIXEL_MEAN[::step], spec.MODEL.PIXEL_STD[::step]
