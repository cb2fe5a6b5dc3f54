from .anchor_labeling import AnchorLabeler
from .anchors import (
    DetectronAnchorGenerator,
    OdtkAnchorGenerator,
    TorchvisionAnchorGenerator,
    paper_anchors,
)
from .backbones import (
    build_resnet_fpn_backbone_with_top_block,
    build_resnet_fpn_backbone_without_top_block,
)
from .efficientnet_lite import EfficientNetLite0, build_efficientnet_lite_fpn_backbone
from .head import DENSE_HEAD_REGISTRY, DenseHead, FocalRetinaNetHead, build_dense_head
from .meta_arch import FocalRetinaNet
from .postprocess import DensePostprocessor

__all__ = [
    "DENSE_HEAD_REGISTRY",
    "AnchorLabeler",
    "DenseHead",
    "DensePostprocessor",
    "DetectronAnchorGenerator",
    "EfficientNetLite0",
    "FocalRetinaNet",
    "FocalRetinaNetHead",
    "OdtkAnchorGenerator",
    "TorchvisionAnchorGenerator",
    "build_dense_head",
    "build_efficientnet_lite_fpn_backbone",
    "build_resnet_fpn_backbone_with_top_block",
    "build_resnet_fpn_backbone_without_top_block",
    "paper_anchors",
]
