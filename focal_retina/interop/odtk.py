"""ODTK's ``Model`` (NVIDIA/retinanet-examples) with one ResNet."""

from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode

from .adapter import Adapter, Data, Tensors, resnet_keys
from .spec import STRIDES, TORCHVISION_RESNET, anchors_per_position, check_count, set_anchors

_BACKBONE = "backbones.ResNet{depth}FPN"


class OdtkAdapter(Adapter):
    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        if "angles" in data:
            raise ValueError("it detects rotated boxes, which RetinaNet of Detectron2 does not")
        if "classes" in data:
            check_count("classes", data["classes"], spec.MODEL.RETINANET.NUM_CLASSES)
        if "ratios" in data and "scales" in data:
            stated = anchors_per_position(spec)
            set_anchors(spec, data["scales"], data["ratios"])
            check_count("anchors", anchors_per_position(spec), stated)
        return super().unwrap(data, spec)

    def wrap(self, tensors: Tensors, spec: CfgNode) -> dict[str, Any]:
        if spec.MODEL.RESNETS.NUM_GROUPS > 1:
            raise ValueError(f"{self.name}: only a ResNet can be written, and this is a ResNeXt")
        # Its network has the ImageNet classifier, too, and loads nothing less.
        fc = f"{_BACKBONE}.features.fc".format(depth=spec.MODEL.RESNETS.DEPTH)
        width = 8 * spec.MODEL.RESNETS.RES2_OUT_CHANNELS
        unused = {f"{fc}.weight": torch.zeros(1000, width), f"{fc}.bias": torch.zeros(1000)}
        return {
            "backbone": [f"ResNet{spec.MODEL.RESNETS.DEPTH}FPN"],
            "classes": spec.MODEL.RETINANET.NUM_CLASSES,
            "state_dict": tensors | unused,
            "ratios": list(spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]),
            "scales": [size / STRIDES[0] for size in spec.MODEL.ANCHOR_GENERATOR.SIZES[0]],
        }


ODTK = OdtkAdapter(
    name="odtk",
    keys={
        **resnet_keys(f"{_BACKBONE}.features"),
        "backbone.fpn_lateral{i}": f"{_BACKBONE}.lateral{{i}}",
        "backbone.fpn_output{i}": f"{_BACKBONE}.smooth{{i}}",
        "backbone.top_block.p{i}": f"{_BACKBONE}.pyramid{{i}}",
        # An nn.Sequential of four convolutions, a ReLU after each, and the output
        **{f"head.cls_subnet.{i}": f"cls_head.{2 * i}" for i in range(4)},
        "head.cls_score": "cls_head.8",
        **{f"head.bbox_subnet.{i}": f"box_head.{2 * i}" for i in range(4)},
        "head.bbox_pred": "box_head.8",
    },
    config={
        **TORCHVISION_RESNET,
        "MODEL.ANCHOR_GENERATOR.NAME": "OdtkAnchorGenerator",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.11,
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "batch",
        "MODEL.FOCAL_RETINA.LABELING.PROMOTION": "none",
    },
    aspect_ratios=(1.0, 2.0, 0.5),
    place="state_dict",
    has_fixed_mean=True,
    spare=r"backbones\.\w+\.features\.fc\..*",  # the ImageNet classifier
)
# And before: 0.2.1 changed the anchors.
ODTK_0_2_0 = replace(
    ODTK,
    name="odtk-0.2.0",
    config={
        **ODTK.config,
        "MODEL.ANCHOR_GENERATOR.NAME": "DetectronAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    },
)
