"""What a RetinaNet's weights mean and do not say themselves: a config of Detectron2, as spec."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor

from ..config import add_focal_retina_config

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7
TORCHVISION_RESNET = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
TOP_BLOCK_BACKBONE = "build_resnet_fpn_backbone_with_top_block"
_BACKBONE = "build_retinanet_resnet_fpn_backbone"
_RETINANET = {
    "MODEL.META_ARCHITECTURE": "FocalRetinaNet",
    "MODEL.BACKBONE.NAME": _BACKBONE,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
}
# In a written config even if it is the default: what a reader looks for first
_ALWAYS_STATED = (
    ("RESNETS", "DEPTH"),
    ("RESNETS", "STRIDE_IN_1X1"),
    ("RETINANET", "NUM_CLASSES"),
    ("ANCHOR_GENERATOR", "ASPECT_RATIOS"),
)


def make_spec(values: Mapping[str, Any]) -> CfgNode:
    """Detectron2's RetinaNet with other values of some keys."""
    spec = _default_config()
    spec.merge_from_list(list(itertools.chain(*(_RETINANET | dict(values)).items())))
    return spec


def _default_config() -> CfgNode:
    cfg = get_cfg()
    add_focal_retina_config(cfg)
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
    """What a yaml has to state so that Detectron2's default config becomes ``spec``."""
    model = spec.MODEL.clone()
    del model["WEIGHTS"], model["DEVICE"]
    different = _difference(model, _default_config().MODEL)
    for node, name in _ALWAYS_STATED:
        different.setdefault(node, {})[name] = model[node][name]
    model = json.loads(json.dumps(different))  # without tuples
    return {"VERSION": 2, "INPUT": {"FORMAT": spec.INPUT.FORMAT}, "MODEL": model}


def _difference(node: CfgNode, default: CfgNode) -> dict[str, Any]:
    """What ``node`` has otherwise than ``default``."""
    different = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            value = _difference(value, default[key])
            if not value:
                continue
        elif value == default[key]:
            continue
        different[key] = value
    return different


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
