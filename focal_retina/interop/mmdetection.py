"""mmdetection's ``RetinaNet`` with ``ResNet``, ``FPN`` and ``RetinaHead`` (2.0 to 3.3)."""

from collections.abc import Mapping
from dataclasses import replace

from detectron2.config import CfgNode

from .adapter import Adapter, Data, fpn_keys, resnet_keys
from .spec import TOP_BLOCK_BACKBONE, TORCHVISION_RESNET, check_count


class MmdetectionAdapter(Adapter):
    def to_key(self, name: str, spec: CfgNode) -> str | None:
        # There the FPN's norm follows P6 and P7 too, for which Detectron2 has no place.
        is_top_bias = name in ("backbone.top_block.p6.bias", "backbone.top_block.p7.bias")
        return None if is_top_bias and spec.MODEL.FPN.NORM else super().to_key(name, spec)

    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        meta = data.get("meta")
        dataset = meta.get("dataset_meta") if isinstance(meta, Mapping) else None  # 3.x
        for node in (meta, dataset):
            classes = node.get("CLASSES", node.get("classes")) if isinstance(node, Mapping) else ()
            if isinstance(classes, (list, tuple)) and classes:
                check_count("classes", len(classes), spec.MODEL.RETINANET.NUM_CLASSES)
        return super().unwrap(data, spec)


MMDET_CAFFE = MmdetectionAdapter(
    name="mmdet-caffe",
    keys={
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
    },
    config={
        "MODEL.BACKBONE.NAME": TOP_BLOCK_BACKBONE,
        "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU": False,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "batch",
    },
    place="state_dict",
    free=["MODEL.RETINANET.NORM", "MODEL.RETINANET.NUM_CONVS", "MODEL.FPN.NORM"],
    sizes_vary_fastest=True,
)
MMDET = replace(MMDET_CAFFE, name="mmdet", config={**MMDET_CAFFE.config, **TORCHVISION_RESNET})
