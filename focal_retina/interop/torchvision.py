"""``torchvision.models.detection.RetinaNet`` with ``resnet_fpn_backbone``."""

import re
from dataclasses import replace

from detectron2.config import CfgNode

from .adapter import Adapter, Data, fpn_keys, resnet_keys
from .spec import TOP_BLOCK_BACKBONE, TORCHVISION_RESNET

_FPN = "backbone.fpn"
_CLASSIFICATION, _REGRESSION = "head.classification_head", "head.regression_head"


class TorchvisionAdapter(Adapter):
    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        return {_todays_key(key): value for key, value in super().unwrap(data, spec).items()}


def _todays_key(key: str) -> str:
    """Of a key of before torchvision 0.13, such as those of the published v1 weights, when a
    convolution and its ReLU became one module. torchvision renames them too."""
    key = re.sub(r"(_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
    old = re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.(weight|bias)", key)
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else key


TORCHVISION_V2 = TorchvisionAdapter(
    name="torchvision-v2",
    keys={
        **resnet_keys("backbone.body"),
        **fpn_keys(f"{_FPN}.inner_blocks", f"{_FPN}.layer_blocks", conv="0", norm="1"),
        "backbone.top_block.p{i}": f"{_FPN}.extra_blocks.p{{i}}",
        "head.cls_subnet.{i}": f"{_CLASSIFICATION}.conv.{{i}}.0",
        "head.cls_subnet.{i}.norm": f"{_CLASSIFICATION}.conv.{{i}}.1",
        "head.cls_score": f"{_CLASSIFICATION}.cls_logits",
        "head.bbox_subnet.{i}": f"{_REGRESSION}.conv.{{i}}.0",
        "head.bbox_subnet.{i}.norm": f"{_REGRESSION}.conv.{{i}}.1",
        "head.bbox_pred": f"{_REGRESSION}.bbox_reg",
    },
    config={
        **TORCHVISION_RESNET,
        "MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator",
        "MODEL.RETINANET.NORM": "GN",
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "image",
    },
    free=["MODEL.FPN.NORM"],
    whole_sizes=True,
    sizes_vary_fastest=True,
    has_background_row=True,
)
TORCHVISION_V1 = replace(
    TORCHVISION_V2,
    name="torchvision-v1",
    config={
        **TORCHVISION_V2.config,
        "MODEL.BACKBONE.NAME": TOP_BLOCK_BACKBONE,
        "MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE": "p5",
        "MODEL.RETINANET.NORM": "",
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "smooth_l1",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    },
)
