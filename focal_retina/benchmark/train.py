"""What ``tools/benchmark.py train`` measures: a training step of our model beside Detectron2's.

A step is forward, backward and the optimizer's, as the trainers of both do it, on a batch that is
there already; :mod:`.end2end` adds the data.
"""

from collections.abc import Callable, Iterator

import torch
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from ..engine.optimizer import build_optimizer
from .detectors import make_batch, make_cfg, make_ours, make_stock
from .loss import Size
from .stages import Stage, StagedCandidate
from .timing import Case

DEFAULT_SIZE = Size(2, 480, 640, 80)
# By name where it makes the batch of a step.
Batches = Callable[[], list[dict]]


def comparison_cases(device: torch.device, size: Size = DEFAULT_SIZE) -> Iterator[Case]:
    """Ours in bf16 and fp32, and Detectron2's in fp32, on CUDA also with its AMP (fp16).

    Yields:
        a title and the candidates by name, ours first.
    """
    batch = make_batch(size)
    yield f"train step, {size.title}", step_candidates(device, size, lambda: batch, lambda: batch)


def step_candidates(
    device: torch.device, size: Size, our_batches: Batches, stock_batches: Batches
) -> dict[str, StagedCandidate]:
    """The candidates of a training step, each on batches from its function."""
    stock = make_stock(size, device).train()
    candidates = {
        f"ours, {name}": _our_step(make_ours(stock, size, device), size, device, dtype, our_batches)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", None))
    }
    candidates["Detectron2, fp32"] = _stock_step(stock, size, device, None, stock_batches)
    if device.type == "cuda":
        twin = make_stock(size, device).train()
        candidates["Detectron2, AMP"] = _stock_step(
            twin, size, device, torch.float16, stock_batches
        )
    return candidates


def _our_step(
    model: nn.Module,
    size: Size,
    device: torch.device,
    dtype: torch.dtype | None,
    batches: Batches,
) -> StagedCandidate:
    optimizer = build_optimizer(make_cfg("FocalRetinaNet", size, device), model.train())
    stages = [
        Stage("head", model.head, "predict_positives"),
        Stage("head", model.head, "forward"),
        Stage("labeling", model, "anchor_labeler"),
    ]
    return _step(model, optimizer, device, dtype, batches, stages)


def _stock_step(
    model: nn.Module,
    size: Size,
    device: torch.device,
    dtype: torch.dtype | None,
    batches: Batches,
) -> StagedCandidate:
    optimizer = build_stock_optimizer(make_cfg("RetinaNet", size, device), model)
    stages = [Stage("head", model.head, "forward"), Stage("labeling", model, "label_anchors")]
    return _step(model, optimizer, device, dtype, batches, stages)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    dtype: torch.dtype | None,
    batches: Batches,
    own_stages: list[Stage],
) -> StagedCandidate:
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    work = _Work(batches)

    def step() -> None:
        batch = work.batches()
        with EventStorage(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        work.backward(scaler.scale(losses))
        scaler.step(optimizer)
        scaler.update()

    stages = [
        Stage("data", work, "batches"),
        Stage("data", model, "preprocess_image"),
        Stage("backbone", model.backbone, "forward"),
        *own_stages,
        Stage("loss", model, "losses"),
        Stage("backward", work, "backward"),
        Stage("optimizer", optimizer, "step"),
    ]
    return StagedCandidate(step, stages)


class _Work:
    """What is no method of model or optimizer, where :class:`Stage` can find it."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
