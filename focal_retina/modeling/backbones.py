"""ResNet-FPN backbones for which Detectron2 has the parts, but no builder."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor

from ..config import with_focal_retina_defaults


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


class _LinearP6P7(LastLevelP6P7):
    """P7 straight from P6, without the paper's ReLU: mmdetection's default."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_with_top_block(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone`` with ``MODEL.FOCAL_RETINA.TOP_BLOCK``.

    Raises:
        ValueError: ``TOP_BLOCK.IN_FEATURE`` is neither "res5" nor "p5".
    """
    options = with_focal_retina_defaults(cfg).MODEL.FOCAL_RETINA.TOP_BLOCK
    bottom_up = build_resnet_backbone(cfg, input_shape)
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    in_channels = {"res5": bottom_up.output_shape()["res5"].channels, "p5": out_channels}
    if options.IN_FEATURE not in in_channels:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE is {options.IN_FEATURE!r}; it can be res5, p5"
        )
    top_block = LastLevelP6P7 if options.RELU else _LinearP6P7
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(in_channels[options.IN_FEATURE], out_channels, options.IN_FEATURE),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
