"""mmdetection's ``RetinaNet`` with ``ResNet``, ``FPN`` and ``RetinaHead`` (2.0 to 3.3)."""

from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode

from .adapter import Adapter, Data, Tensors, check_count, fpn_keys, inner, of_modules, resnet_keys
from .spec import TOP_BLOCK_BACKBONE, TORCHVISION_RESNET

KEYS = of_modules(
    {
        **resnet_keys("backbone"),
        **fpn_keys("neck.lateral_convs", "neck.fpn_convs", conv="conv", norm="{fpn_norm}"),
        "backbone.top_block.p6": "neck.fpn_convs.3.conv",
        "backbone.top_block.p7": "neck.fpn_convs.4.conv",
        "head.cls_subnet.{i}": "bbox_head.cls_convs.{i}.conv",
        "head.cls_subnet.{i}.norm": "bbox_head.cls_convs.{i}.gn",
        "head.cls_score": "bbox_head.retina_cls",
        "head.bbox_subnet.{i}": "bbox_head.reg_convs.{i}.conv",
        "head.bbox_subnet.{i}.norm": "bbox_head.reg_convs.{i}.gn",
        "head.bbox_pred": "bbox_head.retina_reg",
    }
)


@dataclass(frozen=True, kw_only=True)
class MmdetectionAdapter(Adapter):
    def to_key(self, name: str, spec: CfgNode) -> str | None:
        # There the FPN's norm follows P6 and P7 too, for which Detectron2 has no place.
        top_biases = ("backbone.top_block.p6.bias", "backbone.top_block.p7.bias")
        if spec.MODEL.FPN.NORM and name in top_biases:
            return None
        return super().to_key(name, spec)

    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        meta = data.get("meta") or {}
        dataset = meta.get("dataset_meta") or meta  # 3.x or 2.x
        classes = dataset.get("CLASSES") or dataset.get("classes")
        if classes:
            check_count(
                "the file is of {} classes",
                len(classes),
                spec.MODEL.RETINANET.NUM_CLASSES,
                "--num-classes",
            )
        return inner(data, "state_dict")

    def wrap(self, tensors: Tensors, spec: CfgNode) -> dict[str, Any]:
        return {"meta": {}, "state_dict": tensors}


MMDET_CAFFE = MmdetectionAdapter(
    name="mmdet-caffe",
    keys=KEYS,
    config={
        "MODEL.BACKBONE.NAME": TOP_BLOCK_BACKBONE,
        "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU": False,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "batch",
    },
    choices={
        "MODEL.RETINANET.NORM": ("", "GN"),
        "MODEL.RETINANET.NUM_CONVS": (),
        "MODEL.FPN.NORM": ("", "BN", "GN"),
    },
    sizes_vary_fastest=True,
)
MMDET = replace(MMDET_CAFFE, name="mmdet", config={**MMDET_CAFFE.config, **TORCHVISION_RESNET})
