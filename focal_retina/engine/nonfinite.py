"""A loss or gradient that is not finite stops the training, and its batch can be run again.

The dump is a folder of its own below ``OUTPUT_DIR/nonfinite``, readable without executing code:
``report.json`` (iteration, losses, images with their objects, the command that replays the batch),
``batch.pt`` (the images and objects as the model got them, random states), ``model.pth`` (weights
and buffers before the step, as a checkpoint) and ``config.yaml``.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..files import write_json
from ..modeling import FocalRetinaNet
from ..weight_reader import read_weights
from .precision import StepTrainer
from .resume import rng_state, set_rng
from .setup import load_config


@dataclass
class _Iteration:
    """What a look at an iteration needs, and what is dumped of it."""

    batch: list[dict[str, Any]]
    before: dict[str, Any]  # random states and autocast
    buffers: dict[str, Tensor]  # of before the step
    number: int = 0
    losses: dict[str, Tensor] = field(init=False)
    total: Tensor = field(init=False)  # finite where all losses and gradients are
    is_copied: torch.cuda.Event | None = None  # where ``total`` is on its way from a GPU


class NonFiniteGuard(HookBase):
    """A hook of the step trainer, such as Detectron2's SimpleTrainer: after each backward pass, and
    before the optimizer's step, it looks at the losses and the gradients. On a GPU, under a
    :class:`StepTrainer`, it looks at each iteration in the next one, so that the host needn't wait:
    the optimizer left out the step by itself. Under a gradient scaler (fp16), infinite gradients
    are normal: it looks at the losses alone."""

    def __init__(self, model: nn.Module, config: str, folder: Path, gradient_period: int = 1):
        """``model`` without DistributedDataParallel; ``config``: all of it, as yaml. Dumps go to
        ``iter_0001234`` in ``folder``, of rank 1 to ``iter_0001234_rank1``. ``gradient_period``:
        iterations between two looks at the gradients, 0 for none. If one is missed, the next loss
        is not finite; then the weights in the dump aren't either."""
        self._model, self._config = model, config
        self._folder, self._gradient_period = folder, gradient_period
        self._unseen: _Iteration | None = None
        self._model.register_forward_pre_hook(self._before_forward)
        self._model.register_forward_hook(self._after_forward)

    def _before_forward(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not model.training:
            return
        device_type = next(model.parameters()).device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = str(torch.get_autocast_dtype(device_type)).removeprefix("torch.")
        buffers = {
            name: buffer.clone()
            for prefix, module in model.named_modules()
            if not isinstance(module, FrozenBatchNorm2d)
            for name, buffer in module.named_buffers(prefix, recurse=False)
        }
        before = {"rng": rng_state(), "autocast": dtype if autocast else None}
        self._current = _Iteration(inputs[0], before, buffers)

    def _after_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training:
            losses = output if isinstance(output, Mapping) else {"total_loss": output}
            self._current.losses = {name: loss.detach() for name, loss in losses.items()}

    def after_backward(self) -> None:
        """Look at this iteration, or on a GPU at the one before: FloatingPointError where a loss or
        gradient is infinite or NaN, and the dump is written."""
        self.look()
        iteration, trainer = self._current, self.trainer
        iteration.number = trainer.iter
        total = torch.stack([loss.double() for loss in iteration.losses.values()]).sum()
        is_due = self._gradient_period > 0 and trainer.iter % self._gradient_period == 0
        if is_due and getattr(trainer, "grad_scaler", None) is None:
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            total = total + get_total_norm(gradients).to(total.device)
        self._unseen = iteration
        # A fused optimizer leaves out a step where its tensor found_inf is 1.
        is_fused = all(group.get("fused") for group in trainer.optimizer.param_groups)
        if total.is_cuda and is_fused and isinstance(trainer, StepTrainer):
            trainer.optimizer.found_inf = (~total.isfinite()).float()
            on_cpu = torch.empty_like(total, device="cpu", pin_memory=True)
            iteration.total = on_cpu.copy_(total, non_blocking=True)
            iteration.is_copied = torch.cuda.Event()
            iteration.is_copied.record()
        else:
            iteration.total = total
            self.look()

    def look(self) -> None:
        """Look at the last iteration, unless that is done: see :meth:`after_backward`."""
        iteration, self._unseen = self._unseen, None
        if iteration is None:
            return
        if iteration.is_copied is not None:
            iteration.is_copied.synchronize()
        if not iteration.total.isfinite():
            raise FloatingPointError(self._dump(iteration))

    def _dump(self, iteration: _Iteration) -> str:
        """Write the folder and return the error's message."""
        rank, number = comm.get_rank(), iteration.number
        folder = self._folder / f"iter_{number:07d}{f'_rank{rank}' if rank else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(self._config)
        state = self._model.state_dict()
        state.update({name: x for name, x in iteration.buffers.items() if name in state})
        torch.save({"model": state}, folder / "model.pth")
        batch = list(map(_to_plain, iteration.batch))
        torch.save({**iteration.before, "batch": batch}, folder / "batch.pt")
        losses = {name: loss.item() for name, loss in iteration.losses.items()}
        command = shlex.join([sys.executable, "-m", "focal_retina", "replay", str(folder)])
        images = list(map(_describe, iteration.batch))
        report = {"iteration": number, "losses": losses, "images": images, "replay": command}
        write_json(folder / "report.json", report, indent=2)
        what = "gradient" if all(x.isfinite() for x in iteration.losses.values()) else "loss"
        shown = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
        rest = f"a report, the batch and the weights are in {folder}; to run it again"
        how = f"{command} (and this training's --import)"
        return f"a {what} is not finite at iteration {number} ({shown}); {rest}: {how}"


def _describe(x: Mapping[str, Any]) -> dict[str, Any]:
    described = {"file_name": x.get("file_name"), "image_id": x.get("image_id")}
    described["shape"] = list(x["image"].shape)
    if "instances" in x:
        described["boxes"] = x["instances"].gt_boxes.tensor.tolist()
        described["classes"] = x["instances"].gt_classes.tolist()
    return described


def _to_plain(x: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`read_batch` reads of an image's dict: no masks, nor objects of other classes."""
    plain = {k: v for k, v in x.items() if isinstance(v, (str, int, float, bool, Tensor))}
    if "instances" in x:
        fields = x["instances"].get_fields().items()
        kept = {name: value for name, value in fields if isinstance(value, (Tensor, Boxes))}
        plain["instances"] = Instances(x["instances"].image_size, **kept)
    return plain


def read_batch(folder: Path) -> dict[str, Any]:
    """The random states "rng", "autocast" (a dtype's name or None) and "batch" of a dump."""
    with torch.serialization.safe_globals([Boxes, Instances]):
        return read_weights(folder / "batch.pt")


def replay(folder: Path) -> Iterator[str]:
    """Rebuild the model of a dump and run its batch through it, line by line of the report; without
    a GPU on the CPU. OSError or ValueError: the folder is no dump, or its files are damaged."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no dump of a batch: it has no config.yaml")
    cfg = load_config(folder, trained=False)
    dump, weights = read_batch(folder), read_weights(folder / "model.pth")["model"]
    model = build_model(cfg).train()
    model.load_state_dict(weights)
    batch, autocast = dump["batch"], dump["autocast"]
    dtype = getattr(torch, autocast or "bfloat16")
    arithmetic = torch.autocast(model.device.type, dtype, enabled=autocast is not None)
    yield f"{len(batch)} images on {cfg.MODEL.DEVICE} in {autocast or 'float32'}:"
    for x in batch:
        yield f"  {x.get('file_name', 'no file name')} (image id {x.get('image_id', 'none')})"

    if broken := _not_finite(weights):
        yield f"weights that are not finite before the step: {broken}"
    first = _watch(model)
    set_rng(dump["rng"])
    with arithmetic:
        losses = model(batch)
    for name, loss in losses.items():
        yield f"{name} {loss.item():.9g}"
    yield f"first activation that is not finite: {first.get('activation', 'none')}"
    sum(losses.values()).backward()
    gradient = first.get("gradient", "none")
    yield f"first gradient that is not finite, from the losses down: {gradient}"
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    yield f"parameters whose gradients are not finite: {_not_finite(gradients) or 'none'}"

    if isinstance(model, FocalRetinaNet):
        model.load_state_dict(weights)  # the buffers of before
        set_rng(dump["rng"])
        with arithmetic:
            levels = losses_by_level(model, batch)
        table = [{"level": i, **level} for i, level in enumerate(levels)]
        yield tabulate(table, headers="keys", tablefmt="plain", floatfmt=".6g")


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    names = [name for name, x in tensors.items() if not x.isfinite().all()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _watch(model: nn.Module) -> dict[str, str]:
    """What will hold, under "activation" and "gradient", the first module whose output, and whose
    output's gradient, is not finite."""
    first: dict[str, str] = {}

    def note(what: str, name: str, values: Tensor) -> None:
        if count := values.numel() - int(values.isfinite().sum()):
            shape = tuple(values.shape)
            first.setdefault(what, f"{name}: {count} of {values.numel()} of shape {shape}")

    def on_output(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            note("activation", name, output)
            if output.requires_grad:
                output.register_hook(partial(note, "gradient", name))

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(partial(on_output, f"{name} ({type(module).__name__})"))
    return first


@torch.no_grad()
def losses_by_level(model: FocalRetinaNet, batched_inputs: list[dict]) -> list[dict[str, float]]:
    """Where the losses of a training batch come from, a dict a level. The levels add up to the
    losses of the batch, but for OHEM, which mines among the anchors that it is given."""
    images = model.preprocess_image(batched_inputs)
    predictions = model.label_and_predict(images.tensor, batched_inputs)
    num_positives = predictions.image_idxs.bincount(minlength=len(batched_inputs))
    normalizer = model.loss_normalizer(num_positives)
    return [
        {
            **{name: loss.item() for name, loss in model.losses(level, normalizer).items()},
            "num_anchors": level.labels.numel(),
            "num_positives": len(level.image_idxs),
            "max_logit": level.logits[0].abs().max().item(),
            "max_delta": level.deltas.abs().max().item() if len(level.deltas) else 0.0,
        }
        for level in predictions.levels()
    ]
