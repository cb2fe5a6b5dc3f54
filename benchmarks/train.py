"""A training step of our model beside Detectron2's: forward, backward and the optimizer's, as the
trainers of both do it."""

from collections.abc import Iterator, Sequence

import torch
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from focal_retina.engine.precision import set_memory_format
from focal_retina.engine.trainer import build_optimizer

from .inputs import Size, make_batch, make_cfg, make_ours, make_stock
from .timing import Candidate, Case, precisions

SIZES = (Size(2, 480, 640, 80),)


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours in bf16 and fp32, and Detectron2's in fp32; on CUDA also Detectron2's with its AMP
    (fp16), and with channels_last and bf16, which its trainer does not offer."""
    peers = {"fp32": torch.float32}
    if device.type == "cuda":
        peers |= {"AMP": torch.float16, "channels_last + bf16": torch.bfloat16}
    for size in sizes:
        stock, batch = make_stock(size, device), make_batch(size)
        candidates = {}
        for name, dtype in precisions(device).items():
            model = make_ours(stock, size, device)
            set_memory_format(model, precision=name, device=device.type)
            optimizer = build_optimizer(make_cfg(size, device), model)
            candidates[f"ours, {name}"] = train_step(model, optimizer, batch, dtype)
        for name, dtype in peers.items():
            model = make_stock(size, device)
            if "channels_last" in name:
                model.to(memory_format=torch.channels_last)
            optimizer = build_stock_optimizer(make_cfg(size, device), model)
            candidates[f"Detectron2, {name}"] = train_step(model, optimizer, batch, dtype)
        yield f"train step, {size.title}", candidates


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: list[dict],
    dtype: torch.dtype = torch.float32,
) -> Candidate:
    """A step of FocalRetinaNet or of Detectron2's RetinaNet, under autocast unless in fp32."""
    device = model.train().device.type
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def step() -> None:
        with EventStorage(), torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        scaler.scale(losses).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
