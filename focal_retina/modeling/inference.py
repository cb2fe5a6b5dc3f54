"""Faster forms of a detector: its network compiled; frozen batch normalization as part of the
convolutions, in training too; and a copy for inference alone."""

import copy
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..config import check_choice
from .backbones import SameConv2d

INFERENCE_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compile_network(model: DenseDetector, *, backend: str = "inductor") -> None:
    """Compile backbone and subnets (not labeling, losses or NMS) in place, at their first call. The
    state dict keeps its keys. RuntimeError if inductor lacks its C++ compiler on a CPU."""
    if backend == "inductor" and model.device.type == "cpu":
        compilers = [os.environ.get("CXX", "g++"), "clang++"]
        if not any(map(shutil.which, compilers)):
            raise RuntimeError(
                f"torch.compile on a CPU needs a C++ compiler, and {' and '.join(compilers)} are "
                "not on the PATH: install one, name it in CXX, or set "
                "MODEL.FOCAL_RETINA.COMPILE False"
            )
    for network in (model.backbone, *model.head.children()):
        network.compile(backend=backend)


def fold_frozen_batch_norm(model: nn.Module) -> None:
    """Compute each convolution and its FrozenBatchNorm2d as one convolution, in place. Keys, values
    and gradients of parameters stay, the gradients to rounding (1e-5 relative)."""
    for conv, norm, _, _ in _convolutions_and_norms(model):
        if type(norm) is FrozenBatchNorm2d:
            conv.__class__ = _FoldedConv2d if isinstance(conv, Conv2d) else _FoldedSameConv2d
            norm.__class__ = _FoldedNorm
            conv.folded_norm = (norm,)  # in a tuple, which adds nothing to the state dict


class _FoldedNorm(FrozenBatchNorm2d):
    """A part of the convolution before it."""

    # the buffers' identities and versions, themselves, and what was computed from them
    _cache: tuple[list, Any, Any] = ([], None, None)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution's weight and bias, followed by this normalization."""
        scale, shift = self._scale_and_shift()
        shift = shift if bias is None else shift + bias * scale
        return weight * scale[:, None, None, None], shift

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(C,) each; computed anew when a buffer was changed or replaced, as by a checkpoint."""
        if torch.compiler.is_compiling():  # versions are no part of a graph
            return self._compute()
        buffers = self.weight, self.bias, self.running_mean, self.running_var
        state = [(id(x), x._version) for x in buffers]
        if state != self._cache[0]:
            with torch.inference_mode(False):  # such a tensor would not do for training
                self._cache = state, buffers, self._compute()
        return self._cache[2]

    def _compute(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class _FoldedConv2d(Conv2d):
    folded_norm: tuple[_FoldedNorm]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded_norm[0].fold(self.weight, self.bias)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


class _FoldedSameConv2d(SameConv2d):
    folded_norm: tuple[_FoldedNorm]

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        return self.folded_norm[0].fold(self.weight, self.bias)


def _convolutions_and_norms(network: nn.Module) -> Iterator[tuple[Any, Any, nn.Module, str]]:
    """Each convolution and the normalization behind it, with the module and the name of that."""
    for module in list(network.modules()):
        if isinstance(module, Conv2d) and module.norm is not None:
            yield module, module.norm, module, "norm"
        for (_, conv), (name, norm) in pairwise(module.named_children()):
            if isinstance(conv, SameConv2d):
                yield conv, norm, module, name


def inference_copy(model: DenseDetector, precision: str = "fp32") -> DenseDetector:
    """A copy of a FocalRetinaNet or Detectron2's RetinaNet for inference alone: channels_last, with
    norms folded for good, and other keys in its state dict.

    ``precision`` is that of backbone and head, ``fp32`` or ``bf16``; scores, boxes and NMS are
    computed in fp32. In fp32 its dense predictions are the original's to rounding (1e-5 relative).
    """
    check_choice("MODEL.FOCAL_RETINA.INFERENCE_PRECISION", precision, INFERENCE_PRECISIONS)
    # A trainer's hooks stay with the original: they hold on to the trainer.
    hooks = model._forward_hooks, model._forward_pre_hooks
    memo: dict[int, Any] = {id(x): OrderedDict() for x in hooks}
    detector = copy.deepcopy(model, memo).eval().requires_grad_(False)
    dtype = INFERENCE_PRECISIONS[precision]
    for network in (detector.backbone, detector.head):
        fold_batch_norm(network)
        network.to(dtype=dtype).to(memory_format=torch.channels_last)
    detector.head_memory_format = torch.preserve_format
    # The image is normalized in fp32 before.
    detector.backbone.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    return detector


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> None:
    """Make each FrozenBatchNorm2d, and each BatchNorm2d that uses its running statistics, a part of
    the convolution before it, in place. In float64, so that only the results are rounded."""
    for conv, norm, owner, name in _convolutions_and_norms(network):
        is_running = isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and not norm.training
        is_running = is_running and norm.running_mean is not None
        if not (is_running or isinstance(norm, FrozenBatchNorm2d)):
            continue
        dtype, norm = conv.weight.dtype, norm.double()
        setattr(owner, name, None if owner is conv else nn.Identity())
        conv.__class__ = Conv2d if isinstance(conv, Conv2d) else SameConv2d
        conv.__dict__.pop("folded_norm", None)
        conv.double()
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        conv.to(dtype).requires_grad_(False)
