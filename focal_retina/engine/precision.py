"""Which arithmetic and which memory format the processor computes fast, and a step in them."""

import functools
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from ..config import check_choice
from ..config_file import with_values
from ..modeling import FocalRetinaNet
from ..modeling.inference import fold_frozen_batch_norm, inference_copy
from ..weight_reader import read_weights
from .checkpoint import SafeCheckpointer

_logger = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# Flags of /proc/cpuinfo on x86 and Arm
_BF16_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
# What oneDNN's own limit, ONEDNN_MAX_CPU_ISA, takes away, to imitate a lesser processor
_LIMITS = {
    "SSE41|AVX|AVX2.*": r"avx512.*|amx.*",
    "AVX512_CORE(_VNNI)?": r"avx512_bf16|amx.*",
    "AVX512_CORE_(BF16|FP16)|AVX10_1_512": r"amx.*",
}


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU, named as in /proc/cpuinfo, within ONEDNN_MAX_CPU_ISA."""
    text = _CPUINFO.read_text() if _CPUINFO.exists() else ""  # Linux alone has it
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    for limits, beyond in _LIMITS.items():
        if re.fullmatch(limits, limit):
            return {flag for flag in flags if not re.fullmatch(beyond, flag)}
    return flags


def bf16_support(device: str) -> tuple[bool, str]:
    """Whether a device ("cpu", "cuda", "cuda:1") computes bf16 natively, and why, in words."""
    if device.startswith("cuda"):
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        return is_native, f"the GPU has {'' if is_native else 'no '}bf16 arithmetic"
    flags = cpu_flags()
    for flag, name in _BF16_INSTRUCTIONS.items():
        if flag in flags:
            return True, f"the CPU has {name}"
    return False, f"the CPU has no bf16 instructions ({', '.join(_BF16_INSTRUCTIONS.values())})"


def resolve_precision(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """A frozen copy of ``cfg`` with every ``auto`` precision decided, so that config.yaml, every
    process and every later step agree. A run that goes on keeps those that it began with; its
    checkpoint has them."""
    node, begun_with = cfg.MODEL.FOCAL_RETINA, {}
    keys = [x for x in ("PRECISION", "INFERENCE_PRECISION") if node[x] == "auto"]
    if not keys:
        return with_values(cfg, {})  # and read no checkpoint, which takes a while
    if resume and (path := SafeCheckpointer(nn.Identity(), cfg.OUTPUT_DIR).last_intact()):
        begun_with = read_weights(path, mmap=True).get("trainer", {}).get("settings", {})
    fast = "bf16" if bf16_support(cfg.MODEL.DEVICE)[0] else "fp32"
    names = [f"MODEL.FOCAL_RETINA.{key}" for key in keys]
    return with_values(cfg, {name: begun_with.get(name, fast) for name in names})


@functools.cache  # each evaluation builds a model
def log_precision(kind: str, precision: str, device: str) -> None:
    """What a "training" or an "inference" computes in, and why; a warning where it is slow."""
    is_native, reason = bf16_support(device)
    if precision == "bf16" and not is_native:
        key = {"training": "PRECISION", "inference": "INFERENCE_PRECISION"}[kind]
        _logger.warning(
            f"{kind} in bf16, but {reason}: emulated, it took 9 to 13 times as long as fp32 where "
            f"it was measured; MODEL.FOCAL_RETINA.{key} fp32 is fast here"
        )
    else:
        # A processor with bf16 is no reason to compute in fp32: the config is.
        why = f": {reason}" if is_native == (precision == "bf16") else ""
        _logger.info(f"{kind} in {precision}{why}")


def precision_of(cfg: CfgNode) -> str:
    """``MODEL.FOCAL_RETINA.PRECISION`` where ``SOLVER.AMP.ENABLED``, else "fp32"; a ValueError for
    an unknown precision, or fp16 without CUDA."""
    if not cfg.SOLVER.AMP.ENABLED:
        return "fp32"
    precision = resolve_precision(cfg).MODEL.FOCAL_RETINA.PRECISION
    check_choice("MODEL.FOCAL_RETINA.PRECISION", precision, ["auto", *STEP_TRAINERS])
    if precision == "fp16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        hint = ": set MODEL.FOCAL_RETINA.PRECISION auto (or SOLVER.AMP.ENABLED False)"
        raise ValueError(f"fp16 training needs CUDA and MODEL.DEVICE is {cfg.MODEL.DEVICE!r}{hint}")
    return precision


def build_inference_copy(cfg: CfgNode, model: DenseDetector) -> DenseDetector:
    """:func:`inference_copy` in ``MODEL.FOCAL_RETINA.INFERENCE_PRECISION``."""
    precision = resolve_precision(cfg).MODEL.FOCAL_RETINA.INFERENCE_PRECISION
    log_precision("inference", precision, cfg.MODEL.DEVICE)
    return inference_copy(model, precision)


def prepare_for_training(model: nn.Module, *, precision: str, device: str) -> None:
    """Make a model's training step fast, in place: fold frozen batch normalization into the
    convolutions, and lay out the weights (docs/performance.md, Formats). On a CPU without AVX-512
    the weight gradients of the head take twice as long in channels_last: it stays as it is."""
    log_precision("training", precision, device)
    fold_frozen_batch_norm(model)
    if device.startswith("cuda") and precision == "fp32":
        return
    model.to(memory_format=torch.channels_last)
    is_slow = not device.startswith("cuda") and precision == "fp32" and "avx512f" not in cpu_flags()
    if is_slow and isinstance(model, FocalRetinaNet):
        model.head_memory_format = torch.contiguous_format
        model.head.to(memory_format=torch.contiguous_format)


class StepTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` that leaves a GPU's losses there, because each reading waits for it,
    until :meth:`write_metrics_now`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._unwritten: list[tuple[dict[str, Tensor], tuple, dict[str, Any]]] = []

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        losses = {name: loss.detach() for name, loss in loss_dict.items()}
        self._unwritten.append((losses, args, {"iter": self.iter, **kwargs}))
        if not any(loss.is_cuda for loss in losses.values()):
            self.write_metrics_now()

    def write_metrics_now(self) -> None:
        """Put into the event storage what is not there yet, with its iteration."""
        for losses, args, kwargs in self._unwritten:
            super()._write_metrics(losses, *args, **kwargs)
        self._unwritten.clear()


class AutocastTrainer(StepTrainer):
    """:class:`StepTrainer` whose forward pass runs in bf16, on any device. bf16 has the exponents
    of fp32, so that no loss scaling is needed. (Detectron2's AMPTrainer needs CUDA.)"""

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device_type = next(self.model.parameters()).device.type
        with torch.autocast(device_type, dtype=torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


STEP_TRAINERS = {"fp32": StepTrainer, "bf16": AutocastTrainer, "fp16": AMPTrainer}
