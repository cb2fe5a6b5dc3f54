"""ResNet-FPN without a top block, and with the top blocks of other libraries."""

import pytest
import torch
from detectron2.modeling import build_backbone
from helpers import toy_cfg

TOP_BLOCK = "build_resnet_fpn_backbone_with_top_block"


def test_has_the_levels_of_in_features_and_builds_no_further_stage():
    cfg = toy_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone_without_top_block")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build_backbone(cfg)
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"p3": 8, "p4": 16}
    assert not any("res5" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("p6_from, p7_relu", [("p5", True), ("p5", False), ("res5", False)])
def test_top_block_of_other_libraries(p6_from, p7_relu):
    cfg = toy_cfg("MODEL.BACKBONE.NAME", TOP_BLOCK)
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE = p6_from
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.RELU = p7_relu
    backbone = build_backbone(cfg)
    features = backbone(torch.randn(1, 3, 64, 96))
    top_block = backbone.top_block
    assert top_block.p6.in_channels == {"p5": 16, "res5": 512}[p6_from]
    p6 = features["p6"]
    assert (p6 < 0).any()  # else a ReLU would change nothing
    torch.testing.assert_close(features["p7"], top_block.p7(p6.relu() if p7_relu else p6))
