"""ResNet-FPN without a top block."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

import focal_retina  # noqa: F401  registers the backbone


def test_has_the_levels_of_in_features_and_builds_no_further_stage():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone_without_top_block"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    backbone = build_backbone(cfg)
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "p3": (1, 16, 8, 12),
        "p4": (1, 16, 4, 6),
    }
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"p3": 8, "p4": 16}
    assert not any("res5" in name for name, _ in backbone.named_parameters())
