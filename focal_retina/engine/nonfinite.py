"""A loss or gradient that is not finite stops the training, with all that it takes to see why.

What is dumped, in a folder of its own below ``OUTPUT_DIR/nonfinite``, all of it readable without
executing code:

=============  ====================================================================================
report.json    iteration, losses, losses by level, images, parameters whose gradients are not
               finite, and the command that replays the batch
batch.pt       the images and objects as the model got them, states of the random generators
model.pth      the weights and buffers before the step, as a checkpoint
config.yaml    the whole config
=============  ====================================================================================
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from ..modeling import FocalRetinaNet
from .precision import StepTrainer
from .resume import rng_state, set_rng_state

_logger = logging.getLogger(__name__)

BATCH_FILE, CONFIG_FILE = "batch.pt", "config.yaml"
REPORT_FILE, WEIGHTS_FILE = "report.json", "model.pth"


class _Iteration(NamedTuple):
    """What a look at an iteration needs, and what is dumped of it."""

    number: int
    batch: list[dict[str, Any]]
    losses: dict[str, Tensor]
    before: dict[str, Any]  # random states and autocast
    buffers: list[tuple[nn.Module, str, Tensor]]  # of before the step
    total: Tensor  # finite where all losses and gradients are
    is_copied: torch.cuda.Event | None  # where ``total`` is on its way from a GPU


class NonFiniteGuard(HookBase):
    """A hook of the step trainer, such as Detectron2's SimpleTrainer: after each backward pass, and
    before the optimizer's step, it looks at the losses and the gradients.

    The model's forward hooks give it the batch and the buffers, so that it goes with every trainer.
    On a GPU, under a :class:`StepTrainer`, it looks at each iteration in the next one, so that the
    host needn't wait: the optimizer left out the step by itself.
    Under a gradient scaler (fp16), infinite gradients are normal: it looks at the losses alone.
    """

    def __init__(self, model: nn.Module, *, config: str, folder: Path, gradient_period: int = 1):
        """
        Args:
            model: what the trainer trains; DistributedDataParallel or not.
            config: the whole config as yaml.
            folder: dumps go to a folder in it, ``iter_0001234``, for other processes than the first
                ``iter_0001234_rank1`` and so on.
            gradient_period: iterations between two looks at the gradients, 0 for none. If one is
                missed, the next loss is not finite; then the weights in the dump aren't either.
        """
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._config = config
        self._folder = folder
        self._gradient_period = gradient_period
        self._batch: list[dict[str, Any]] = []
        self._losses: dict[str, Tensor] = {}
        self._before: dict[str, Any] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._unseen: _Iteration | None = None
        self._model.register_forward_pre_hook(self._before_forward)
        self._model.register_forward_hook(self._after_forward)

    def _before_forward(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not model.training:
            return
        self._batch = inputs[0]
        device_type = next(model.parameters()).device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = str(torch.get_autocast_dtype(device_type)).removeprefix("torch.")
        self._before = {"rng": rng_state(), "autocast": dtype if autocast else None}
        self._buffers = [
            (module, name, buffer.clone())
            for module in model.modules()
            if not isinstance(module, FrozenBatchNorm2d)
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def _after_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training:
            losses = output if isinstance(output, Mapping) else {"total_loss": output}
            self._losses = {name: loss.detach() for name, loss in losses.items()}

    def after_backward(self) -> None:
        """Look at this iteration, or on a GPU at the one before.

        Raises:
            FloatingPointError: a loss or gradient is infinite or NaN; the dump is written.
        """
        self.look()
        total = torch.stack([loss.double() for loss in self._losses.values()]).sum()
        if self._checks_gradients():
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            total = total + get_total_norm(gradients).to(total.device)
        is_copied = None
        if (
            total.is_cuda
            and isinstance(self.trainer, StepTrainer)
            and self.trainer.can_skip_steps()
        ):
            self.trainer.optimizer.found_inf = (~total.isfinite()).float()
            total = torch.empty_like(total, device="cpu", pin_memory=True).copy_(total, True)
            is_copied = torch.cuda.Event()
            is_copied.record()
        self._unseen = self._iteration(total, is_copied)
        if is_copied is None:
            self.look()

    def _iteration(self, total: Tensor, is_copied: torch.cuda.Event | None) -> _Iteration:
        number = self.trainer.iter
        return _Iteration(
            number, self._batch, self._losses, self._before, self._buffers, total, is_copied
        )

    def look(self) -> None:
        """Look at the last iteration, unless that is done: see :meth:`after_backward`."""
        iteration, self._unseen = self._unseen, None
        if iteration is None:
            return
        if iteration.is_copied is not None:
            iteration.is_copied.synchronize()
        if torch.isfinite(iteration.total):
            return
        folder = self._dump(iteration)
        losses = ", ".join(f"{name} {loss.item():g}" for name, loss in iteration.losses.items())
        what = "loss" if any(not x.isfinite() for x in iteration.losses.values()) else "gradient"
        raise FloatingPointError(
            f"a {what} is not finite at iteration {iteration.number} ({losses}); a report, the "
            f"batch and the weights are in {folder}; to run it again: {_replay_command(folder)}"
        )

    def _checks_gradients(self) -> bool:
        return (
            self._gradient_period > 0
            and self.trainer.iter % self._gradient_period == 0
            and getattr(self.trainer, "grad_scaler", None) is None
        )

    def _dump(self, iteration: _Iteration) -> Path:
        rank = comm.get_rank()
        folder = self._folder / f"iter_{iteration.number:07d}{f'_rank{rank}' if rank else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self._config)
        for module, name, value in iteration.buffers:
            getattr(module, name).copy_(value)
        torch.save({"model": self._model.state_dict()}, folder / WEIGHTS_FILE)
        batch = [_readable_parts(x) for x in iteration.batch]
        torch.save({**iteration.before, "batch": batch}, folder / BATCH_FILE)
        report = {
            "iteration": iteration.number,
            "losses": {name: loss.item() for name, loss in iteration.losses.items()},
            "images": [_describe(x) for x in iteration.batch],
            "replay": _replay_command(folder),
        }
        # Before what may fail
        _write_json(folder, report)
        report["parameters with gradients that are not finite"] = self._again(
            iteration, self._bad_gradients
        )
        report["levels"] = self._again(iteration, self._levels)
        _write_json(folder, report)
        return folder

    def _again(self, iteration: _Iteration, work: Callable[[_Iteration], Any]) -> Any:
        """What ``work`` finds, or why it can't be had: the first error must not get lost."""
        set_rng_state(iteration.before["rng"])
        device_type = next(self._model.parameters()).device.type
        try:
            with autocast_of(device_type, iteration.before["autocast"]):
                return work(iteration)
        except Exception as error:
            _logger.exception("a part of the report could not be made")
            return f"{type(error).__name__}: {error}"

    def _bad_gradients(self, iteration: _Iteration) -> list[str]:
        if self.trainer.iter != iteration.number:  # the gradients are the next iteration's
            self._model.zero_grad()
            sum(self._model(iteration.batch).values()).backward()
        return bad_gradients(self._model)

    def _levels(self, iteration: _Iteration) -> Any:
        if not isinstance(self._model, FocalRetinaNet):
            return f"{type(self._model).__name__} has no losses by level"
        return losses_by_level(self._model, iteration.batch)


@torch.no_grad()
def losses_by_level(model: FocalRetinaNet, batched_inputs: list[dict]) -> list[dict[str, float]]:
    """Where the losses of a training batch come from, a dict a level.

    The levels add up to the losses of the batch, but for OHEM, which mines among the anchors that
    it is given. The normalizer counts the batch.
    """
    images = model.preprocess_image(batched_inputs)
    predictions = model.label_and_predict(images.tensor, batched_inputs)
    normalizer = model.loss_normalizer(
        predictions.image_idxs.bincount(minlength=len(batched_inputs))
    )
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


def bad_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradients are not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


def autocast_of(device_type: str, dtype: str | None) -> torch.autocast:
    """The autocast context of a dump: ``dtype`` is "bfloat16", "float16", or None for none."""
    torch_dtype = None if dtype is None else getattr(torch, dtype)
    return torch.autocast(device_type, torch_dtype, enabled=dtype is not None)


def _replay_command(folder: Path) -> str:
    return f"./run -m focal_retina replay {folder}"


def _write_json(folder: Path, report: dict[str, Any]) -> None:
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")


def _describe(x: Mapping[str, Any]) -> dict[str, Any]:
    instances = x.get("instances")
    return {
        "file_name": x.get("file_name"),
        "image_id": x.get("image_id"),
        "shape": list(x["image"].shape),
        "boxes": instances.gt_boxes.tensor.tolist() if instances is not None else None,
        "classes": instances.gt_classes.tolist() if instances is not None else None,
    }


def _readable_parts(x: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`read_dumped` reads of an image's dict: no masks, nor objects of other classes."""
    parts = {k: v for k, v in x.items() if isinstance(v, (str, int, float, bool, Tensor))}
    if "instances" in x:
        fields = x["instances"].get_fields().items()
        kept = {k: v for k, v in fields if isinstance(v, (Boxes, Tensor))}
        parts["instances"] = Instances(x["instances"].image_size, **kept)
    return parts


def read_dumped(path: Path) -> Any:
    """Read BATCH_FILE or WEIGHTS_FILE of a dump.

    Raises:
        FileNotFoundError, ValueError: it is not there, or damaged.
    """
    try:
        with torch.serialization.safe_globals([Boxes, Instances]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive raises one of many kinds
        raise ValueError(f"{path} cannot be read: {error}") from error
