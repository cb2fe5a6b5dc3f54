from .anchor_labeling import AnchorLabeler
from .backbone import build_resnet_fpn_backbone_without_top_block
from .head import DENSE_HEAD_REGISTRY, FocalRetinaNetHead, build_dense_head
from .meta_arch import FocalRetinaNet
from .postprocess import DensePostprocessor

__all__ = [
    "DENSE_HEAD_REGISTRY",
    "AnchorLabeler",
    "DensePostprocessor",
    "FocalRetinaNet",
    "FocalRetinaNetHead",
    "build_dense_head",
    "build_resnet_fpn_backbone_without_top_block",
]
