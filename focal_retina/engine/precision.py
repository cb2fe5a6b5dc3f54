"""Which arithmetic and which memory format the processor computes fast, and a step in them.

``MODEL.FOCAL_RETINA.PRECISION`` and ``INFERENCE_PRECISION`` may be ``auto``: bf16 where the
processor has instructions for it, else fp32. :func:`resolve_precision` writes the decision into the
config, so that config.yaml, every process and every later step agree on it.
"""

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn, optim

from ..modeling import FocalRetinaNet
from ..modeling.inference import fold_frozen_batch_norm, inference_copy
from ..weight_reader import read_weights
from .checkpoint import SafeCheckpointer

_logger = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# Flags of /proc/cpuinfo on x86 and Arm.
_BF16_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
# What is left of them under oneDNN's own limit, ONEDNN_MAX_CPU_ISA, with which a lesser processor
# is imitated.
_LIMITS = {
    "SSE41|AVX|AVX2.*": r"avx512.*|amx.*",
    "AVX512_CORE(_VNNI)?": r"avx512_bf16|amx.*",
    "AVX512_CORE_(BF16|FP16)|AVX10_1_512": r"amx.*",
}


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU, named as in /proc/cpuinfo, within ONEDNN_MAX_CPU_ISA."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
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
    names = [name for flag, name in _BF16_INSTRUCTIONS.items() if flag in flags]
    if names:
        return True, f"the CPU has {names[0]}"
    return False, f"the CPU has no bf16 instructions ({', '.join(_BF16_INSTRUCTIONS.values())})"


def resolve_precision(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """``cfg`` with every ``auto`` precision decided.

    Args:
        cfg: frozen; it stays as it is.
        resume: a run that goes on keeps the precisions that it began with; its checkpoint has them.
    """
    begun_with = _precisions_of_checkpoint(cfg.OUTPUT_DIR) if resume else {}
    fast = "bf16" if bf16_support(cfg.MODEL.DEVICE)[0] else "fp32"
    return _with_precisions(
        cfg,
        {
            key: begun_with.get(key, fast) if precision == "auto" else precision
            for key, precision in precisions_of(cfg).items()
        },
    )


def precisions_of(cfg: CfgNode) -> dict[str, str]:
    """What a checkpoint keeps for :func:`resolve_precision`."""
    return {key: cfg.MODEL.FOCAL_RETINA[key] for key in ("PRECISION", "INFERENCE_PRECISION")}


def _precisions_of_checkpoint(output_dir: str) -> dict[str, str]:
    checkpointer = SafeCheckpointer(nn.Identity(), output_dir)
    path = checkpointer.last_intact() if checkpointer.has_checkpoint() else None
    return read_weights(path, mmap=True).get("trainer", {}).get("precisions", {}) if path else {}


def as_in_main_process(cfg: CfgNode) -> CfgNode:
    """``cfg`` with the precisions of the main process, whose machine may have another CPU."""
    return _with_precisions(cfg, comm.all_gather(precisions_of(cfg))[0])


def _with_precisions(cfg: CfgNode, precisions: dict[str, str]) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FOCAL_RETINA.update(precisions)
    cfg.freeze()
    return cfg


def log_precision(kind: str, precision: str, device: str) -> None:
    """One line: what a training or an evaluation computes in, and why; a warning where it is slow.

    Args:
        kind: "training" or "inference".
        precision: "fp32", "bf16" or "fp16".
        device: see :func:`bf16_support`.
    """
    is_native, reason = bf16_support(device)
    if precision == "bf16" and not is_native:
        key = {"training": "PRECISION", "inference": "INFERENCE_PRECISION"}[kind]
        _logger.warning(
            "%s in bf16, but %s: emulated, it took 9 to 13 times as long as fp32 where it was "
            "measured; MODEL.FOCAL_RETINA.%s fp32 is fast here",
            kind,
            reason,
            key,
        )
    else:
        _logger.info("%s in %s: %s", kind, precision, reason)


def precision_of(cfg: CfgNode) -> str:
    """``MODEL.FOCAL_RETINA.PRECISION`` where ``SOLVER.AMP.ENABLED``, else "fp32".

    Raises:
        ValueError: an unknown precision, or fp16 without CUDA.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return "fp32"
    precision = resolve_precision(cfg).MODEL.FOCAL_RETINA.PRECISION
    if precision not in _STEP_TRAINERS:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.PRECISION is {precision!r}; "
            f"it can be auto, {', '.join(_STEP_TRAINERS)}"
        )
    if precision == "fp16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"fp16 training needs CUDA and MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: "
            "set MODEL.FOCAL_RETINA.PRECISION auto (or SOLVER.AMP.ENABLED False)"
        )
    return precision


def build_inference_copy(cfg: CfgNode, model: DenseDetector) -> DenseDetector:
    """:func:`inference_copy` in ``MODEL.FOCAL_RETINA.INFERENCE_PRECISION``."""
    precision = resolve_precision(cfg).MODEL.FOCAL_RETINA.INFERENCE_PRECISION
    log_precision("inference", precision, cfg.MODEL.DEVICE)
    return inference_copy(model, precision)


def prepare_for_training(model: nn.Module, *, precision: str, device: str) -> None:
    """Make a model's training step as fast as it can be, in place: frozen batch normalization is
    folded into the convolutions, and the weights are laid out (docs/performance.md, Formats).

    channels_last is best for narrow types, and on CPUs for 1x1 convolutions; the dense outputs are
    then views, not copies. Without AVX-512, the weight gradient of the subnets' 3x3 convolutions
    takes twice as long in it, so that the head stays in PyTorch's own format.
    """
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
        self._unwritten: list[tuple[dict[str, Tensor], float, str, int]] = []

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iteration = self.iter if iter is None else iter
        losses = {name: loss.detach() for name, loss in loss_dict.items()}
        self._unwritten.append((losses, data_time, prefix, iteration))
        if not any(loss.is_cuda for loss in losses.values()):
            self.write_metrics_now()

    def can_skip_steps(self) -> bool:
        """Whether the optimizer leaves out a step where its tensor ``found_inf`` is 1."""
        return all(group.get("fused") for group in self.optimizer.param_groups)

    def write_metrics_now(self) -> None:
        """Put into the event storage what is not there yet, with its iteration."""
        for metrics in self._unwritten:
            super()._write_metrics(*metrics)
        self._unwritten.clear()


class AutocastTrainer(StepTrainer):
    """:class:`SimpleTrainer` whose forward pass runs in bf16, on any device.

    bf16 has the exponents of fp32, so that no loss scaling is needed. (Detectron2's AMPTrainer
    needs CUDA.)
    """

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


_STEP_TRAINERS = {"fp32": StepTrainer, "bf16": AutocastTrainer, "fp16": AMPTrainer}


def build_step_trainer(
    cfg: CfgNode,
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    optimizer: optim.Optimizer,
) -> SimpleTrainer:
    """The trainer of one step in the precision of ``cfg``, see :func:`precision_of`."""
    return _STEP_TRAINERS[precision_of(cfg)](model, data_loader, optimizer)
