"""Backbones that Detectron2 has the parts of, but no builder."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import build_resnet_backbone


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_without_top_block(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN with a level for each of ``MODEL.FPN.IN_FEATURES`` and none beyond.

    Detectron2's builders add P6 (and P7), and need res5 for it. Without them a model of small
    objects can end at a stage of its choice, such as res4, and pays for no other.
    """
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
