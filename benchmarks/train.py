"""A training step of our model beside Detectron2's: forward, backward and the optimizer's, as the
trainers of both do it."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

from focal_retina.engine.precision import prepare_for_training
from focal_retina.engine.trainer import build_optimizer

from .inputs import Size, make_batch, make_cfg, make_ours, make_stock, write_jpegs
from .loader import batches_of_both
from .timing import Case, Staged, precisions

SIZES = (Size(2, 480, 640, 80),)
NUM_FILES = 16
Batches = Callable[[], list[dict]]  # makes the batch of a step


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Steps on a batch that is there already; and from JPEG files, of which none is loaded ahead,
    our step after the mapper on OpenCV and Detectron2's after its own."""
    for size in sizes:
        batch = make_batch(size)
        yield f"train step, {size.title}", _candidates(device, size, batch.copy, batch.copy)
        with tempfile.TemporaryDirectory() as folder:
            records = write_jpegs(size._replace(images=NUM_FILES), Path(folder))
            batches = batches_of_both(records, size, (min(size.height, size.width),))
            yield f"files to a train step, {size.title}", _candidates(device, size, *batches)


def _candidates(
    device: torch.device, size: Size, our_batches: Batches, stock_batches: Batches
) -> dict[str, Staged]:
    """Ours in bf16 and fp32, and Detectron2's in fp32, on CUDA also with its AMP (fp16), and in the
    format and precision of ours, which shows what is gained by these alone."""
    stock, candidates = make_stock(size, device), {}
    for name, dtype in precisions(device).items():
        model = make_ours(stock, size, device)
        prepare_for_training(model, precision=name, device=device.type)
        optimizer = build_optimizer(make_cfg(size, device), model)
        candidates[f"ours, {name}"] = train_step(model, optimizer, our_batches, dtype)
    cfg = make_cfg(size, device, meta_arch="RetinaNet")
    peers = {"fp32": torch.float32}
    if device.type == "cuda":
        peers |= {"AMP": torch.float16, "channels_last + bf16": torch.bfloat16}
    for name, dtype in peers.items():
        model = make_stock(size, device)
        if dtype is torch.bfloat16:
            model.to(memory_format=torch.channels_last)
        step = train_step(model, build_stock_optimizer(cfg, model), stock_batches, dtype)
        candidates[f"Detectron2, {name}"] = step
    return candidates


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    dtype: torch.dtype = torch.float32,
) -> Staged:
    """A step of FocalRetinaNet or of Detectron2's RetinaNet, under autocast unless in fp32."""
    model.train()
    device = model.device.type
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    # Where the stages find what is no method of model or optimizer.
    work = SimpleNamespace(batches=batches, backward=torch.Tensor.backward)

    def step() -> None:
        batch = work.batches()
        with EventStorage(), torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        work.backward(scaler.scale(losses))
        scaler.step(optimizer)
        scaler.update()

    is_ours = hasattr(model, "anchor_labeler")
    stages = [
        ("data", work, "batches"),
        ("data", model, "preprocess_image"),
        ("backbone", model.backbone, "forward"),
        ("head", model.head, "predict_positives" if is_ours else "forward"),
        ("labeling", model, "anchor_labeler" if is_ours else "label_anchors"),
        ("loss", model, "losses"),
        ("backward", work, "backward"),
        ("optimizer", optimizer, "step"),
    ]
    return Staged(step, stages)
