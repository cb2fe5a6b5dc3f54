"""What a RetinaNet's weights mean: a config of Detectron2, as spec, and the tensors it has.

Names here are Detectron2's, but for the subnets: their convolutions are counted, and a norm is
named after its convolution, as in Detectron2's backbones (``head.cls_subnet.1.norm.weight``).
"""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_backbone
from torch import Tensor

from ..config import add_focal_retina_config
from ..modeling import build_dense_head

STEM = "backbone.bottom_up.stem.conv1"
OUTPUTS = {"head.cls_subnet": "head.cls_score", "head.bbox_subnet": "head.bbox_pred"}
# Residual blocks of the stages 2 to 5, of a depth
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
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
    spec = get_cfg()
    add_focal_retina_config(spec)
    spec.merge_from_list(list(itertools.chain(*(_RETINANET | dict(values)).items())))
    return spec


def spec_from_config(cfg: CfgNode) -> CfgNode:
    """The config of a model as a spec, with sizes for each level; ValueError where the model is not
    a RetinaNet on P3 to P7 of a ResNet."""
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
    if len(generator.SIZES) == 1:
        generator.SIZES = generator.SIZES * len(STRIDES)
    if (count := len(generator.SIZES)) != len(STRIDES):
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.SIZES is for {count} levels, not 5")
    return spec


def settings_of(spec: CfgNode) -> dict[str, Any]:
    """What a yaml has to state so that Detectron2's default config becomes ``spec``."""
    default = get_cfg()
    add_focal_retina_config(default)
    different = _difference(spec.MODEL, default.MODEL)
    different.pop("WEIGHTS", None)
    different.pop("DEVICE", None)
    for node, name in _ALWAYS_STATED:
        different.setdefault(node, {})[name] = spec.MODEL[node][name]
    model = json.loads(json.dumps(different))  # without tuples
    return {"VERSION": 2, "INPUT": {"FORMAT": spec.INPUT.FORMAT}, "MODEL": model}


def _difference(node: CfgNode, default: CfgNode) -> dict[str, Any]:
    """What ``node`` has otherwise than ``default``."""
    different = {key: value for key, value in node.items() if value != default[key]}
    return {
        key: _difference(value, default[key]) if isinstance(value, CfgNode) else value
        for key, value in different.items()
    }


def anchors_per_position(spec: CfgNode) -> int:
    generator = spec.MODEL.ANCHOR_GENERATOR
    return len(generator.SIZES[0]) * len(generator.ASPECT_RATIOS[0])


def first_boxes(spec: CfgNode) -> Tensor:
    """The anchors (5, A, 4) of the first position of each level, in pixels."""
    generator = build_anchor_generator(spec, [ShapeSpec(stride=stride) for stride in STRIDES])
    offsets = spec.MODEL.ANCHOR_GENERATOR.OFFSET * torch.tensor(STRIDES)
    return torch.stack(list(generator.cell_anchors)) + offsets.view(-1, 1, 1)


def read_architecture(ours: dict[str, Tensor], spec: CfgNode) -> None:
    """Set depth, norms, numbers of convolutions and channels of ``spec`` to those of a file."""
    names, resnets, retinanet = "\n".join(ours), spec.MODEL.RESNETS, spec.MODEL.RETINANET
    has_bottlenecks = re.search(r"\.res\d\.\d+\.conv3\.", names) is not None
    blocks = _count(r"\.res4\.(\d+)\.", names)
    depths = [x for x in BLOCKS if BLOCKS[x][2] == blocks and (x >= 50) == has_bottlenecks]
    if not depths:
        raise ValueError(
            f"its stage 4 has {blocks} residual blocks: a ResNet of {list(BLOCKS)} layers has "
            f"{[counts[2] for counts in BLOCKS.values()]}"
        )
    resnets.DEPTH, resnets.NORM = depths[0], "FrozenBN"
    retinanet.NUM_CONVS = _count(r"_subnet\.(\d+)\.", names)
    retinanet.NORM = "GN" if re.search(r"_subnet\.\d+\.norm\.", names) else ""
    spec.MODEL.FPN.NORM = "GN" if re.search(r"\.fpn_\w+\.norm\.", names) else ""
    if re.search(r"\.fpn_\w+\.norm\.running_", names):
        spec.MODEL.FPN.NORM = "BN"
    shapes = {name: tuple(x.shape) for name, x in ours.items()}
    resnets.STEM_OUT_CHANNELS = shapes.get(f"{STEM}.weight", (64,))[0]
    block = "backbone.bottom_up.res2.0"
    last_conv = f"{block}.conv{3 if has_bottlenecks else 2}.weight"
    resnets.RES2_OUT_CHANNELS = shapes.get(last_conv, (256 if has_bottlenecks else 64,))[0]
    if has_bottlenecks:
        channels, channels_of_group = shapes.get(f"{block}.conv2.weight", (64, 64))[:2]
        resnets.NUM_GROUPS = channels // channels_of_group
        resnets.WIDTH_PER_GROUP = channels_of_group
    spec.MODEL.FPN.OUT_CHANNELS = shapes.get("backbone.fpn_output5.weight", (256,))[0]


def tensor_names(spec: CfgNode) -> list[str]:
    """Every tensor of the network that ``spec`` describes, under Detectron2's names."""
    with torch.device("meta"):  # shapes without memory
        backbone = build_backbone(spec)
        shapes = backbone.output_shape()
        head = build_dense_head(spec, [shapes[x] for x in spec.MODEL.RETINANET.IN_FEATURES])
    names = [f"backbone.{name}" for name in backbone.state_dict()]
    names += [f"head.{name}" for name in head.state_dict()]
    return [name for name in names if not name.endswith(".num_batches_tracked")]


def _count(pattern: str, names: str) -> int:
    """One more than the highest number that the pattern finds."""
    return max(map(int, re.findall(pattern, names)), default=-1) + 1
