"""Faster forms of a detector: its network compiled; and a copy for inference alone, channels_last,
with normalization folded into convolutions, in fp32 or bf16."""

import copy
import os
import shutil
from collections import OrderedDict
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn
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
