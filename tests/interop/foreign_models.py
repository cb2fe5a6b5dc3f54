"""RetinaNets as other libraries lay them out, small, for the tests of converted weights.

Written from what the libraries publish of their modules' names and forward passes:
NVIDIA/retinanet-examples (odtk/model.py, backbones/fpn.py), open-mmlab/mmdetection
(dense_heads/retina_head.py, necks/fpn.py, configs/_base_/models/retinanet_r50_fpn.py) and
facebookresearch/Detectron (modeling/ResNet.py, FPN.py, retinanet_heads.py).
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

K, A = 5, 9
C = 32  # channels of the FPN


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that all matter, with activations of about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (1.5 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
            elif hasattr(module, "weight") and isinstance(module.weight, torch.Tensor):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
            if getattr(module, "running_var", None) is not None:
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def resnet_features(resnet: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    c3 = resnet.layer2(resnet.layer1(x))
    c4 = resnet.layer3(c3)
    return [c3, c4, resnet.layer4(c4)]


def top_down(p3, p4, p5):
    p4 = p4 + F.interpolate(p5, scale_factor=2)
    return p3 + F.interpolate(p4, scale_factor=2), p4, p5


class OdtkFPN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = resnet18(weights=None)
        self.lateral3, self.lateral4, self.lateral5 = (nn.Conv2d(c, C, 1) for c in (128, 256, 512))
        self.pyramid6 = nn.Conv2d(512, C, 3, stride=2, padding=1)
        self.pyramid7 = nn.Conv2d(C, C, 3, stride=2, padding=1)
        self.smooth3, self.smooth4, self.smooth5 = (nn.Conv2d(C, C, 3, padding=1) for _ in range(3))

    def forward(self, x):
        c3, c4, c5 = resnet_features(self.features, x)
        laterals = self.lateral3(c3), self.lateral4(c4), self.lateral5(c5)
        p3, p4, p5 = top_down(*laterals)
        p6 = self.pyramid6(c5)
        smooth = [self.smooth3(p3), self.smooth4(p4), self.smooth5(p5)]
        return [*smooth, p6, self.pyramid7(F.relu(p6))]


class Odtk(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbones = nn.ModuleDict({"ResNet18FPN": OdtkFPN()})
        for name, channels in (("cls_head", K * A), ("box_head", 4 * A)):
            tower = [m for _ in range(4) for m in (nn.Conv2d(C, C, 3, padding=1), nn.ReLU())]
            setattr(self, name, nn.Sequential(*tower, nn.Conv2d(C, channels, 3, padding=1)))

    def forward(self, x):
        features = self.backbones["ResNet18FPN"](x)
        return [self.cls_head(f) for f in features], [self.box_head(f) for f in features]


def conv_module(*args, norm=False, relu=False, **kwargs) -> nn.Sequential:
    """mmcv's: a convolution, and with a norm no bias and the norm under its own name."""
    modules = {"conv": nn.Conv2d(*args, bias=not norm, **kwargs)}
    if norm:
        modules["gn"] = nn.GroupNorm(32, C)
    if relu:
        modules["activate"] = nn.ReLU()
    return nn.Sequential(OrderedDict(modules))


class Mmdet(nn.Module):
    def __init__(self, head_norm=False):
        super().__init__()
        self.backbone = resnet18(weights=None)
        del self.backbone.fc
        self.neck = nn.Module()
        self.neck.lateral_convs = nn.ModuleList(conv_module(c, C, 1) for c in (128, 256, 512))
        self.neck.fpn_convs = nn.ModuleList(
            [conv_module(C, C, 3, padding=1) for _ in range(3)]
            + [conv_module(c, C, 3, stride=2, padding=1) for c in (512, C)]
        )
        self.bbox_head = nn.Module()
        for name in ("cls_convs", "reg_convs"):
            convs = [conv_module(C, C, 3, padding=1, norm=head_norm, relu=True) for _ in range(4)]
            setattr(self.bbox_head, name, nn.ModuleList(convs))
        self.bbox_head.retina_cls = nn.Conv2d(C, K * A, 3, padding=1)
        self.bbox_head.retina_reg = nn.Conv2d(C, 4 * A, 3, padding=1)

    def forward(self, x):
        inputs = resnet_features(self.backbone, x)
        laterals = [conv(c) for conv, c in zip(self.neck.lateral_convs, inputs, strict=True)]
        convs, head = self.neck.fpn_convs, self.bbox_head
        outs = [conv(p) for conv, p in zip(convs, top_down(*laterals), strict=False)]
        outs.append(convs[3](inputs[-1]))
        outs.append(convs[4](outs[-1]))  # relu_before_extra_convs is False by default
        cls_head = nn.Sequential(*head.cls_convs, head.retina_cls)
        box_head = nn.Sequential(*head.reg_convs, head.retina_reg)
        return [cls_head(x) for x in outs], [box_head(x) for x in outs]


def detectron_blobs(seed: int = 0) -> dict[str, np.ndarray]:
    """Blobs of a RetinaNet with ResNet-50, an FPN of C channels and few channels throughout."""
    generator = np.random.default_rng(seed)
    blobs: dict[str, np.ndarray] = {}

    def conv(name, out_channels, in_channels, kernel, bias=True):
        fan_in = in_channels * kernel**2
        shape = (out_channels, in_channels, kernel, kernel)
        blobs[f"{name}_w"] = generator.normal(0, (1.5 / fan_in) ** 0.5, shape)
        if bias:
            blobs[f"{name}_b"] = generator.uniform(-0.5, 0.5, out_channels)

    def affine(name, channels):
        blobs[f"{name}_bn_s"] = generator.uniform(0.5, 1.0, channels)
        blobs[f"{name}_bn_b"] = generator.uniform(-0.2, 0.2, channels)

    conv("conv1", 64, 3, 7, bias=False)
    blobs["conv1_w"] /= 60  # for pixels that are divided by nothing
    affine("res_conv1", 64)
    channels = 64
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        inner, outer = 8 * 2 ** (stage - 2), 32 * 2 ** (stage - 2)
        for i in range(count):
            shapes = {"2a": (inner, channels, 1), "2b": (inner, inner, 3), "2c": (outer, inner, 1)}
            if i == 0:
                shapes["1"] = (outer, channels, 1)
            for branch, shape in shapes.items():
                conv(f"res{stage}_{i}_branch{branch}", *shape, bias=False)
                affine(f"res{stage}_{i}_branch{branch}", shape[0])
            channels = outer
    laterals = {"res5_2_sum": 256, "res4_5_sum_lateral": 128, "res3_3_sum_lateral": 64}
    for blob, in_channels in laterals.items():
        conv(f"fpn_inner_{blob}", C, in_channels, 1)
        conv(f"fpn_{blob.removesuffix('_lateral')}", C, C, 3)
    conv("fpn_6", C, 256, 3)
    conv("fpn_7", C, C, 3)
    for task, out_channels in (("cls", K * A), ("bbox", 4 * A)):
        for i in range(4):
            conv(f"retnet_{task}_conv_n{i}_fpn3", C, C, 3)
        conv(f"retnet_{task}_pred_fpn3", out_channels, C, 3)
    return {name: blob.astype(np.float32) for name, blob in blobs.items()}


def run_detectron(blobs: dict[str, np.ndarray], x: torch.Tensor):
    """Per level logits and deltas, with the stride in the first 1x1 convolution (STRIDE_1X1)."""
    tensors = {name: torch.from_numpy(blob) for name, blob in blobs.items()}

    def conv(x, name, stride=1):
        weight = tensors[f"{name}_w"]
        bias = tensors.get(f"{name}_b")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def affine(x, name):
        scale, bias = tensors[f"{name}_bn_s"], tensors[f"{name}_bn_b"]
        return x * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)

    x = F.max_pool2d(F.relu(affine(conv(x, "conv1", 2), "res_conv1")), 3, 2, padding=1)
    stages = {}
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for i in range(count):
            name, stride = f"res{stage}_{i}_branch", 2 if i == 0 and stage > 2 else 1
            y = F.relu(affine(conv(x, f"{name}2a", stride), f"{name}2a"))
            y = F.relu(affine(conv(y, f"{name}2b"), f"{name}2b"))
            y = affine(conv(y, f"{name}2c"), f"{name}2c")
            shortcut = affine(conv(x, f"{name}1", stride), f"{name}1") if i == 0 else x
            x = F.relu(y + shortcut)
        stages[stage] = x
    inner3, inner4, inner5 = top_down(
        conv(stages[3], "fpn_inner_res3_3_sum_lateral"),
        conv(stages[4], "fpn_inner_res4_5_sum_lateral"),
        conv(stages[5], "fpn_inner_res5_2_sum"),
    )
    p6 = conv(stages[5], "fpn_6", 2)
    names = "fpn_res3_3_sum", "fpn_res4_5_sum", "fpn_res5_2_sum"
    features = [conv(x, name) for x, name in zip((inner3, inner4, inner5), names, strict=True)]
    features += [p6, conv(F.relu(p6), "fpn_7", 2)]

    def subnet(x, task):
        for i in range(4):
            x = F.relu(conv(x, f"retnet_{task}_conv_n{i}_fpn3"))
        return conv(x, f"retnet_{task}_pred_fpn3")

    return [[subnet(x, task) for x in features] for task in ("cls", "bbox")]
