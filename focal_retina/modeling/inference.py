"""Faster forms of a detector: its network compiled; frozen batch normalization as part of the
convolutions, in training too; and a copy for inference alone, channels_last, with normalization
folded for good, in fp32 or bf16."""

import copy
import operator
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

INFERENCE_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compile_network(model: DenseDetector, *, backend: str = "inductor") -> None:
    """Compile backbone and subnets (not labeling, losses or NMS) in place, at their first call. The
    state dict keeps its keys.

    Raises:
        RuntimeError: on a CPU inductor needs a C++ compiler, and there is none.
    """
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
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = _FoldedConv2d


class _FoldedConv2d(Conv2d):
    """Detectron2's :class:`Conv2d` whose FrozenBatchNorm2d scales the weights, not the outputs."""

    # buffers, their versions, and what was computed from them
    _cache: tuple[tuple[Tensor, ...], list[int], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:  # folded for good, in an inference copy
            return super().forward(x)
        scale, shift = self._scale_and_shift()
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else shift + self.bias * scale
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(C,) each; computed anew when a buffer was changed or replaced, as by a checkpoint."""
        norm = self.norm
        buffers = norm.weight, norm.bias, norm.running_mean, norm.running_var
        if torch.compiler.is_compiling():  # versions are no part of a graph
            return _affine(*buffers, norm.eps)
        versions = [x._version for x in buffers]
        if self._cache is None or self._cache[1] != versions or not _are(self._cache[0], buffers):
            with torch.inference_mode(False):  # such a tensor would not do for training
                self._cache = buffers, versions, _affine(*buffers, norm.eps)
        return self._cache[2]


def _are(some: Iterable[object], others: Iterable[object]) -> bool:
    return all(map(operator.is_, some, others))


def _affine(
    weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalization."""
    scale = weight * (variance + eps).rsqrt()
    return scale, bias - mean * scale


def inference_copy(model: DenseDetector, precision: str = "fp32") -> DenseDetector:
    """
    Args:
        model: a FocalRetinaNet or Detectron2's RetinaNet; it stays as it is.
        precision: of backbone and head, ``fp32`` or ``bf16``. Scores, boxes and NMS are computed in
            fp32 in both cases.

    Returns:
        A model with weights of its own, in evaluation mode. In fp32 its dense predictions are the
        original's to rounding (1e-5 relative). It has other keys in its state dict, and can't be
        trained.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in INFERENCE_PRECISIONS:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.INFERENCE_PRECISION is {precision!r}; "
            f"it can be {', '.join(INFERENCE_PRECISIONS)}"
        )
    # A trainer's hooks stay with the original: they hold on to the trainer.
    memo: dict[int, Any] = {
        id(x): OrderedDict() for x in (model._forward_hooks, model._forward_pre_hooks)
    }
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
    """Make the fixed affine map of each batch normalization part of its convolution, in place.

    It does so for Detectron2's ``Conv2d`` with a FrozenBatchNorm2d, or with a BatchNorm2d that uses
    its running statistics. The arithmetic is float64, so that only the results are rounded.
    """
    for conv in network.modules():
        if not isinstance(conv, Conv2d) or not _is_fixed(conv.norm):
            continue
        dtype, norm = conv.weight.dtype, conv.norm.double()
        conv.norm = None
        conv.double()
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        conv.to(dtype).requires_grad_(False)


def _is_fixed(norm: nn.Module | None) -> bool:
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return not norm.training and norm.track_running_stats
    return isinstance(norm, FrozenBatchNorm2d)
