"""ResNet-FPN without a top block, and with the top blocks of other libraries."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from focal_retina import add_focal_retina_config


def small_config(name, stages):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = stages
    cfg.MODEL.FPN.IN_FEATURES = stages
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def test_has_the_levels_of_in_features_and_builds_no_further_stage():
    cfg = small_config("build_resnet_fpn_backbone_without_top_block", ["res3", "res4"])
    backbone = build_backbone(cfg)
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "p3": (1, 16, 8, 12),
        "p4": (1, 16, 4, 6),
    }
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"p3": 8, "p4": 16}
    assert not any("res5" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("p6_from, p7_relu", [("p5", True), ("p5", False), ("res5", False)])
def test_top_block_of_other_libraries(p6_from, p7_relu):
    cfg = small_config("build_resnet_fpn_backbone_with_top_block", ["res3", "res4", "res5"])
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE = p6_from
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.RELU = p7_relu
    backbone = build_backbone(cfg)
    features = backbone(torch.randn(1, 3, 64, 96))
    top_block = backbone.top_block
    assert top_block.p6.in_channels == {"p5": 16, "res5": 512}[p6_from]
    p6 = features["p6"]
    assert (p6 < 0).any()  # else a ReLU would change nothing
    torch.testing.assert_close(features["p7"], top_block.p7(p6.relu() if p7_relu else p6))


def test_unknown_top_block_feature_is_refused():
    cfg = small_config("build_resnet_fpn_backbone_with_top_block", ["res3", "res4", "res5"])
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE = "res4"
    with pytest.raises(ValueError, match=r"TOP_BLOCK.IN_FEATURE is 'res4'; it can be res5, p5"):
        build_backbone(cfg)
