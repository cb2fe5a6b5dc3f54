"""A batch whose loss or gradient was not finite, once more, from the dump of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling import FocalRetinaNet
from .nonfinite import (
    BATCH_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    autocast_of,
    bad_gradients,
    losses_by_level,
    read_dumped,
)
from .resume import set_rng_state
from .setup import load_config
from .trainer import Trainer


def replay(folder: Path) -> Iterator[str]:
    """Rebuild the model of a dump and run its batch through it, line by line of the report.

    Where the dump is of a GPU and there is none here, it runs on the CPU, whose numbers differ in
    the last digits.

    Raises:
        FileNotFoundError: the folder is no dump.
        ValueError: its files are damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} is no dump of a batch: it has no {CONFIG_FILE}")
    device = [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
    cfg = load_config(folder / CONFIG_FILE, device)
    dump, weights = (read_dumped(folder / name) for name in (BATCH_FILE, WEIGHTS_FILE))
    model = Trainer.build_model(cfg).train()
    model.load_state_dict(weights["model"])
    batch = dump["batch"]
    autocast = partial(autocast_of, torch.device(cfg.MODEL.DEVICE).type, dump["autocast"])
    arithmetic = dump["autocast"] or "float32"
    yield f"{len(batch)} images on {cfg.MODEL.DEVICE} in {arithmetic}:"
    for x in batch:
        yield f"  {x.get('file_name', 'no file name')} (image id {x.get('image_id', 'none')})"

    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        yield f"weights that are not finite before the step: {_shorten(broken)}"
    trace = _Trace(model)
    set_rng_state(dump["rng"])
    with autocast():
        losses = model(batch)
    for name, loss in losses.items():
        yield f"{name} {loss.item():.9g}"
    yield f"first activation that is not finite: {trace.activation or 'none'}"
    sum(losses.values()).backward()
    yield f"first gradient that is not finite, from the losses down: {trace.gradient or 'none'}"
    bad = _shorten(bad_gradients(model))
    yield f"parameters whose gradients are not finite: {bad or 'none'}"

    if isinstance(model, FocalRetinaNet):
        model.load_state_dict(weights["model"])  # the buffers of before
        set_rng_state(dump["rng"])
        with autocast():
            yield from _level_table(losses_by_level(model, batch))


def _level_table(levels: list[dict[str, Any]]) -> Iterator[str]:
    columns = ("loss_cls", "loss_box_reg", "num_positives", "max_logit", "max_delta")
    yield "level  " + "".join(f"{name:>15}" for name in columns)
    for index, level in enumerate(levels):
        yield f"{index:<7}" + "".join(f"{level[name]:>15.6g}" for name in columns)


def _shorten(names: list[str], limit: int = 5) -> str:
    further = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + further


class _Trace:
    """The first module whose output, and whose output's gradient, is not finite."""

    def __init__(self, model: nn.Module):
        self.activation: str | None = None
        self.gradient: str | None = None
        for name, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(partial(self._on_output, name))

    def _on_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        kind = f"{name} ({type(module).__name__})"
        if self.activation is None:
            self.activation = _flaw(kind, output)
        if output.requires_grad:
            output.register_hook(partial(self._on_gradient, kind))

    def _on_gradient(self, kind: str, gradient: Tensor) -> None:
        if self.gradient is None:
            self.gradient = _flaw(kind, gradient)


def _flaw(kind: str, values: Tensor) -> str | None:
    count = values.numel() - int(values.isfinite().sum())
    return f"{kind}: {count} of {values.numel()} of shape {tuple(values.shape)}" if count else None
