"""Which tensors a RetinaNet with a ResNet has, and how its depth and widths show in them.

Names here are Detectron2's, but for the subnets: their convolutions are counted, and a norm is
named after its convolution, as in Detectron2's backbones (``head.cls_subnet.1.norm.weight``).
"""

import re

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor

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


def read_architecture(ours: dict[str, Tensor], spec: CfgNode) -> None:
    """Set depth, norms, numbers of convolutions and of channels of ``spec`` to what is in a file.

    Raises:
        ValueError: the residual blocks are those of no known depth.
    """
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
