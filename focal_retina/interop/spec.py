"""What a RetinaNet's weights mean: a config of Detectron2, as spec, the tensors that it has, and
their output channels.

Names here are Detectron2's, but for the subnets: their convolutions are counted, and a norm is
named after its convolution, as in Detectron2's backbones (``head.cls_subnet.1.norm.weight``).

Shapes: K classes, A anchors a position. A classification output has A x rows channels, a box output
A x 4; there may be more rows than classes.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_backbone
from torch import Tensor, nn

from ..config import add_focal_retina_config
from ..modeling import build_dense_head

STEM = "backbone.bottom_up.stem.conv1"
CLS, BOX = "head.cls_score", "head.bbox_pred"
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
_COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_COCO_ROWS = 91  # row 0, and 1 to 90 for category numbers, eleven of which nothing has


def _default_config() -> CfgNode:
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    return cfg


def make_spec(values: Mapping[str, Any]) -> CfgNode:
    """Detectron2's RetinaNet with other values of some keys."""
    spec = _default_config()
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
    model = _difference(spec.MODEL, _default_config().MODEL)
    model.pop("WEIGHTS", None)
    model.pop("DEVICE", None)
    settings = {"VERSION": 2, "INPUT": {"FORMAT": spec.INPUT.FORMAT}, "MODEL": model}
    return json.loads(json.dumps(settings))  # without tuples


def _difference(node: CfgNode, default: CfgNode) -> dict[str, Any]:
    """What ``node`` has otherwise than ``default``."""
    return {
        key: _difference(value, default[key]) if isinstance(value, CfgNode) else value
        for key, value in node.items()
        if value != default[key]
    }


def set_anchors(spec: CfgNode, scales: Any, ratios: Any, *, whole_sizes: bool = False) -> None:
    """Sizes in strides of a level, and aspect ratios; ValueError if any is no positive number."""
    for values in (scales, ratios):
        is_list = isinstance(values, (list, tuple)) and values
        if not is_list or not all(isinstance(x, (int, float)) and 0 < x < math.inf for x in values):
            found = f"{values}"
            raise ValueError(f"anchor scales and aspect ratios are positive, not {found:.80}")
    sizes = [[scale * stride for scale in scales] for stride in STRIDES]
    if whole_sizes:
        sizes = [[float(int(size)) for size in level] for level in sizes]
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
    """Set depth, norms, numbers of convolutions and channels of ``spec`` to those of a file.

    Raises:
        ValueError: no ResNet has these blocks, or a convolution another number of dimensions.
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


def _count(pattern: str, names: str) -> int:
    """How many numbers the pattern finds."""
    return len(set(re.findall(pattern, names)))


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


def check_count(what: str, found: object, stated: int, option: str) -> None:
    """Compare a count that a file may show with that of the spec."""
    is_number = isinstance(found, (int, float))
    if found is not None and not (is_number and found == stated):
        raise ValueError(
            f"{what.format(found)}, and not the {stated} that are stated ({option}, or the config)"
        )


def class_rows(num_rows: int, num_classes: int, *, has_background_row: bool) -> list[int]:
    """The row, of an anchor's in the file, of each of Detectron2's K contiguous classes.

    Row 0 may be a background that nothing is assigned to (torchvision).
    """
    if has_background_row and num_rows == num_classes + 1:
        return list(range(1, num_rows))
    if has_background_row and (num_rows, num_classes) == (_COCO_ROWS, len(_COCO_IDS)):
        return list(_COCO_IDS)
    check_count("the file has {} classes an anchor", num_rows, num_classes, "--num-classes")
    return list(range(num_rows))


def rows_with_background(num_classes: int) -> int:
    """How many rows an anchor has, one of background among them."""
    return _COCO_ROWS if num_classes == len(_COCO_IDS) else num_classes + 1


def output_channels(
    spec: CfgNode, rows: Sequence[int], num_rows: int, *, sizes_vary_fastest: bool
) -> dict[str, Tensor]:
    """Of each output, a library's channel for each of ours, whose aspect ratios vary fastest.
    ``rows`` are those of an anchor's ``num_rows`` that we have, in our order."""
    anchors = torch.arange(anchors_per_position(spec))
    if sizes_vary_fastest:
        num_ratios = len(spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
        anchors = anchors.view(num_ratios, -1).t().flatten()
    return {
        output: (anchors[:, None] * count + torch.tensor(used)).flatten()
        for output, used, count in ((CLS, rows, num_rows), (BOX, range(4), 4))
    }
