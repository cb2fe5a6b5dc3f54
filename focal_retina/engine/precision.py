"""One training step in the arithmetic that ``SOLVER.AMP`` asks for."""

import time
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn, optim


class AutocastTrainer(SimpleTrainer):
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


_STEP_TRAINERS = {"fp32": SimpleTrainer, "bf16": AutocastTrainer, "fp16": AMPTrainer}


def precision_of(cfg: CfgNode) -> str:
    """``MODEL.FOCAL_RETINA.PRECISION`` where ``SOLVER.AMP.ENABLED``, else "fp32".

    Raises:
        ValueError: an unknown precision, or fp16 without CUDA.
    """
    precision = cfg.MODEL.FOCAL_RETINA.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
    if precision not in _STEP_TRAINERS:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.PRECISION is {precision!r}; it can be {', '.join(_STEP_TRAINERS)}"
        )
    if precision == "fp16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"fp16 training needs CUDA and MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: "
            "set MODEL.FOCAL_RETINA.PRECISION bf16 (or SOLVER.AMP.ENABLED False)"
        )
    return precision


def build_step_trainer(
    cfg: CfgNode,
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    optimizer: optim.Optimizer,
) -> SimpleTrainer:
    """The trainer of one step in the precision of ``cfg``, see :func:`precision_of`."""
    return _STEP_TRAINERS[precision_of(cfg)](model, data_loader, optimizer)
