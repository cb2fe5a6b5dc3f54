"""What a RetinaNet's weights mean: a config of Detectron2, as spec, and the tensors that it has.

Names here are Detectron2's, but for the subnets: their convolutions are counted, and a norm is
named after its convolution, as in Detectron2's backbones (``head.cls_subnet.1.norm.weight``).

Shapes: K classes, A anchors a position. A classification output has A x rows channels, a box output
A x 4; there may be more rows than classes.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_backbone
from torch import Tensor, nn

from ..config import with_focal_retina_defaults
from ..modeling import build_dense_head

STEM = "backbone.bottom_up.stem.conv1"
CLS, BOX = "head.cls_score", "head.bbox_pred"
# Residual blocks of the stages 3 to 5, by depth
BLOCKS = {18: (2, 2, 2), 34: (4, 6, 3), 50: (4, 6, 3), 101: (4, 23, 3), 152: (8, 36, 3)}
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


def make_spec(values: Mapping[str, Any]) -> CfgNode:
    """Detectron2's RetinaNet with other values of some keys."""
    spec = with_focal_retina_defaults(get_cfg())
    spec.defrost()
    spec.merge_from_list([x for item in (_RETINANET | dict(values)).items() for x in item])
    return spec


def spec_from_config(cfg: CfgNode) -> CfgNode:
    """The config of a model as a spec, with sizes for each level; ValueError where the model is not
    a RetinaNet on P3 to P7 of a ResNet."""
    spec = cfg.clone()
    spec.defrost()
    generator, name = spec.MODEL.ANCHOR_GENERATOR, spec.MODEL.BACKBONE.NAME
    if name not in (_BACKBONE, TOP_BLOCK_BACKBONE):
        known = f"{_BACKBONE} and {TOP_BLOCK_BACKBONE}"
        raise ValueError(f"MODEL.BACKBONE.NAME is {name!r}; can be converted: {known}")
    if name == _BACKBONE:
        spec.MODEL.FOCAL_RETINA.TOP_BLOCK = CfgNode({"IN_FEATURE": "res5", "RELU": True})
    if len(generator.SIZES) == 1:
        generator.SIZES = generator.SIZES * len(STRIDES)
    if len(generator.SIZES) != len(STRIDES) or len(generator.ASPECT_RATIOS) != 1:
        raise ValueError("MODEL.ANCHOR_GENERATOR: not SIZES of 5 levels and one list of ratios")
    return spec


def settings_of(spec: CfgNode) -> dict[str, Any]:
    """What a yaml has to state so that Detectron2's default config becomes ``spec``."""
    model = _difference(spec.MODEL, with_focal_retina_defaults(get_cfg()).MODEL)
    for key in ("WEIGHTS", "DEVICE"):
        model.pop(key, None)
    settings = {"VERSION": 2, "INPUT": {"FORMAT": spec.INPUT.FORMAT}, "MODEL": model}
    return json.loads(json.dumps(settings))  # without tuples


def _difference(node: CfgNode, default: CfgNode) -> dict[str, Any]:
    return {
        key: _difference(value, default[key]) if isinstance(value, CfgNode) else value
        for key, value in node.items()
        if value != default[key]
    }


def set_anchors(spec: CfgNode, scales: Any, ratios: Any) -> None:
    """Sizes in strides of a level, and aspect ratios; ValueError if any is no positive number."""
    for values in (scales, ratios):
        is_list = isinstance(values, (list, tuple)) and values
        if not is_list or not all(isinstance(x, (int, float)) and 0 < x < math.inf for x in values):
            raise ValueError(f"anchor scales and aspect ratios are positive, not {values!s:.80}")
    sizes = [[scale * stride for scale in scales] for stride in STRIDES]
    spec.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(ratios)]


def anchors_per_position(spec: CfgNode) -> int:
    generator = spec.MODEL.ANCHOR_GENERATOR
    return len(generator.SIZES[0]) * len(generator.ASPECT_RATIOS[0])


def first_boxes(spec: CfgNode) -> Tensor:
    """The anchors (5, A, 4) of the first position of each level, in pixels."""
    generator = build_anchor_generator(spec, [ShapeSpec(stride=stride) for stride in STRIDES])
    offsets = spec.MODEL.ANCHOR_GENERATOR.OFFSET * torch.tensor(STRIDES)
    return torch.stack(list(generator.cell_anchors)) + offsets.view(-1, 1, 1)


def read_architecture(ours: Mapping[str, Tensor], spec: CfgNode) -> None:
    """Set depth, norms, numbers of convolutions and channels of ``spec`` to those of a file;
    ValueError where no ResNet has these blocks, or no convolution such a shape."""
    names, resnets, retinanet = "\n".join(ours), spec.MODEL.RESNETS, spec.MODEL.RETINANET
    has_bottlenecks = ".conv3." in names
    blocks = len(set(re.findall(r"\.res4\.(\d+)\.", names)))
    depths = [x for x in BLOCKS if BLOCKS[x][1] == blocks and (x >= 50) == has_bottlenecks]
    if not depths:
        counts = ", ".join(f"{counts[1]} (ResNet-{x})" for x, counts in BLOCKS.items())
        raise ValueError(f"its stage 4 has {blocks} residual blocks, and not {counts}")
    resnets.DEPTH, resnets.NORM = depths[0], "FrozenBN"
    retinanet.NUM_CONVS = len(set(re.findall(r"_subnet\.(\d+)\.", names)))
    retinanet.NORM = "GN" if re.search(r"_subnet\.\d+\.norm\.", names) else ""
    spec.MODEL.FPN.NORM = "GN" if re.search(r"\.fpn_\w+\.norm\.", names) else ""
    if re.search(r"\.fpn_\w+\.norm\.running_", names):
        spec.MODEL.FPN.NORM = "BN"

    def shape_of(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        shape = tuple(ours[name].shape) if name in ours else default
        if len(shape) != len(default) or 0 in shape:
            raise ValueError(f"{name} has the shape {shape}, which no convolution has")
        return shape

    resnets.STEM_OUT_CHANNELS = shape_of(f"{STEM}.weight", (64, 3, 7, 7))[0]
    resnets.RES2_OUT_CHANNELS = 64
    if has_bottlenecks:
        block = "backbone.bottom_up.res2.0"
        resnets.RES2_OUT_CHANNELS = shape_of(f"{block}.conv3.weight", (256, 64, 1, 1))[0]
        inner, resnets.WIDTH_PER_GROUP = shape_of(f"{block}.conv2.weight", (64, 64, 3, 3))[:2]
        resnets.NUM_GROUPS = inner // resnets.WIDTH_PER_GROUP
    spec.MODEL.FPN.OUT_CHANNELS = shape_of("backbone.fpn_output5.weight", (256, 256, 3, 3))[0]


def tensor_shapes(spec: CfgNode, num_rows: int) -> dict[str, list[int]]:
    """Every tensor of the network that ``spec`` describes, under Detectron2's names."""
    spec = spec.clone()
    spec.MODEL.RETINANET.NUM_CLASSES = num_rows
    with torch.device("meta"):  # shapes without memory
        backbone = build_backbone(spec)
        shapes = backbone.output_shape()
        head = build_dense_head(spec, [shapes[x] for x in spec.MODEL.RETINANET.IN_FEATURES])
    tensors = nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
    counters = ".num_batches_tracked"
    return {name: list(x.shape) for name, x in tensors.items() if not name.endswith(counters)}


def check_count(kind: str, found: object, stated: int) -> None:
    """A ValueError where a file has another number of "classes" or "anchors" than is stated."""
    if not (isinstance(found, int) and found == stated):
        expected = f"the {stated} that are stated (--num-{kind}, or the config)"
        raise ValueError(f"the file is of {found!r:.40} {kind}, and not {expected}")
