"""The trainer's own hooks: what comes after the step of an iteration, see :class:`.Trainer`."""

import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from fvcore.common.checkpoint import Checkpointer
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .launch_and_interrupt import Interrupted, StopRequest
from .resume import rng_state, set_rng

_logger = logging.getLogger(__name__)

_WINDOW = 20  # iterations, of which Detectron2's writers take the median
# Timings of a process are not those of the next.
_CLOCKS = {"time", "data_time", "rank_data_time", "eta_seconds"}


class WeightAverage(hooks.HookBase):
    """Moves the average after each step, and keeps the weights that are trained in the checkpoint.
    Buffers are averaged, too: batch normalization's statistics of the last weights are not those
    of the average."""

    def __init__(self, model: nn.Module, decay: float):
        """``decay``: ``MODEL.FOCAL_RETINA.EMA_DECAY``; at 0 the ``evaluated`` is the model."""
        self.model, self._is_resumed = model, False
        update = {"multi_avg_fn": get_ema_multi_avg_fn(decay), "use_buffers": True}
        self._average = AveragedModel(model, **update) if decay else None
        self.evaluated = self._average.module if self._average else model

    def before_train(self) -> None:
        if self._average and not self._is_resumed:
            self.model.load_state_dict(self.evaluated.state_dict())  # the checkpointer loaded it

    def before_step(self) -> None:
        self._scale = self._loss_scale()

    def after_step(self) -> None:
        # A scale that falls says that the optimizer left out the step.
        if self._average and self._loss_scale() >= self._scale:
            self._average.update_parameters(self.model)

    def share_buffers(self) -> None:
        """Each process takes the first one's, which are in the checkpoint: else each would evaluate
        with batch normalization's statistics of its own images."""
        for buffer in self.evaluated.buffers() if comm.get_world_size() > 1 else ():
            distributed.broadcast(buffer, 0)

    def _loss_scale(self) -> float:
        """That of fp16; reading it waits for the GPU."""
        scaler = getattr(self.trainer._trainer, "grad_scaler", None)
        return scaler.get_scale() if scaler and self._average else 1.0

    def state_dict(self) -> dict[str, Any]:
        if not self._average:
            return {}
        return {"model": self.model.state_dict(), "num_averaged": self._average.n_averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Train on; without an average, too, the weights are those that were trained."""
        self._is_resumed = True
        self.model.load_state_dict(state["model"])
        if self._average:
            self._average.n_averaged.fill_(state["num_averaged"])


class CheckpointHook(hooks.PeriodicCheckpointer):
    """Detectron2's periodic checkpoints, and one more where a signal asks to stop. It runs in every
    process: the checkpoint has the random states of all."""

    def __init__(self, checkpointer: Checkpointer, period: int, stop: StopRequest):
        super().__init__(checkpointer, period)
        self._stop = stop
        self._rng_states: list[dict[str, Any]] = []  # one a process; in the main process alone

    def before_train(self) -> None:
        super().before_train()
        if comm.get_rank() < len(self._rng_states):
            set_rng(self._rng_states[comm.get_rank()])
        elif self.trainer.start_iter > 0:
            _logger.warning("the checkpoint has no random states for this process")

    def after_step(self) -> None:
        """:class:`Interrupted` where a signal came and the iteration is saved."""
        if self.trainer.iter == self.trainer.start_iter == 0 and comm.is_main_process():
            self.checkpointer.start_anew()
        signum = self._stop.agreed()
        if self._is_due() or signum is not None:
            self.gather_rng_states()
        self.step(self.trainer.iter)
        if signum is not None:
            self.save_unless_due()
            raise Interrupted(signum)

    def save_unless_due(self) -> None:
        if not self._is_due():
            iteration = self.trainer.iter
            self.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)

    def gather_rng_states(self) -> None:
        """For the checkpoint; every process must call."""
        self.trainer.read_gpu()
        self._rng_states = comm.gather(rng_state())

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self._rng_states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng_states = state["rng"]

    def _is_due(self) -> bool:
        iteration = self.trainer.iter
        return (iteration + 1) % self.period == 0 or iteration >= self.max_iter - 1


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's ``model_best.pth``, its state in the checkpoint and the same in every process.
    The best value so far is a metric, too, whose name is ``best/`` and the metric's."""

    def _best_checking(self) -> None:
        storage, metric = self.trainer.storage, self._val_metric
        latest = comm.all_gather(storage.latest())[0]  # only the main process has the metrics
        if metric not in latest:
            names = ", ".join(name for name in latest if "bbox" in name) or "none"
            raise ValueError(f"TEST.KEEP_BEST {metric} is not evaluated, in contrast to {names}")
        value, iteration = latest[metric]
        if not comm.is_main_process():
            storage.put_scalar(metric, value, smoothing_hint=False, cur_iter=iteration)
        super()._best_checking()
        if self.best_iter is not None:
            storage.put_scalar(f"best/{metric}", self.best_metric, smoothing_hint=False)
            # The last evaluation comes after the last iteration, and counts as one more.
            number = min(self.best_iter + 1, self.trainer.max_iter)
            best = f"{self.best_metric:.2f} after {number} iterations"
            _logger.info(f"{metric} is {value:.2f}, the best {best}: model_best.pth")

    def num_worse(self) -> int:
        """Evaluations since the best, 0 between two of them."""
        number, rest = divmod(self.trainer.iter + 1, self._period)
        best_iter = -1 if self.best_iter is None else self.best_iter
        return 0 if rest else number - (best_iter + 1) // self._period

    def state_dict(self) -> dict[str, Any]:
        return {self._val_metric: (self.best_metric, self.best_iter)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state.get(self._val_metric, (None, None))


class Patience(hooks.HookBase):
    """The last hook, in every process: after ``patience`` evaluations without a better one the
    training ends as after its last iteration, but that its ``evaluation`` is done already. Like
    any checkpoint the last one has the random states of before the evaluation."""

    def __init__(self, patience: int, best: BestCheckpoint, evaluation: hooks.EvalHook):
        self._patience, self._best, self._evaluation = patience, best, evaluation

    def after_step(self) -> None:
        """:class:`Interrupted` by no signal where patience is over."""
        trainer, best = self.trainer, self._best
        if trainer.iter + 1 >= trainer.max_iter or best.num_worse() < self._patience:
            return
        trainer.checkpointer.save("model_final", iteration=trainer.iter)
        why = f"as TEST.PATIENCE {self._patience} is over"
        _logger.info(f"the training is finished after {trainer.iter + 1} iterations, {why}")
        trainer._hooks[:] = [x for x in trainer._hooks if x not in (best, self._evaluation)]
        trainer.iter += 1
        trainer.max_iter = trainer.iter
        raise Interrupted(None)


class MetricsWriter(hooks.PeriodicWriter):
    """Detectron2's periodic writer, whose resumed ``metrics.json`` is that of one run: the
    checkpoint has the values that medians are taken of; lines written after it are dropped."""

    _restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # training has not begun
            return {}
        hints = storage.smoothing_hints()
        scalars = {
            name: {"smoothing_hint": hints[name], "values": history.values()[-_WINDOW:]}
            for name, history in storage.histories().items()
            if name not in _CLOCKS
        }
        last_write = max((x._last_write for x in self._recorders()), default=-1)
        return {"scalars": scalars, "last_write": last_write}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def before_train(self) -> None:
        if self._restored is None:
            return
        put_scalar = self.trainer.storage.put_scalar
        for name, scalar in self._restored["scalars"].items():
            for value, iteration in scalar["values"]:
                put_scalar(name, value, scalar["smoothing_hint"], cur_iter=iteration)
        last_write = self._restored["last_write"]
        for writer in self._recorders():
            writer._last_write = last_write
            if isinstance(writer, TensorboardXWriter):
                writer._writer_args["purge_step"] = last_write + 1
            else:
                _drop_metrics_after(last_write, Path(writer._file_handle.name))

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.trainer.read_gpu()
        super().after_step()

    def _recorders(self) -> list[JSONWriter | TensorboardXWriter]:
        """The writers that keep what they write: not the printer."""
        return [x for x in self._writers if isinstance(x, (JSONWriter, TensorboardXWriter))]


def _drop_metrics_after(iteration: int, path: Path) -> None:
    """Cut the last lines of a ``metrics.json`` that are of later iterations, or incomplete. In
    place, as a writer may have the file open."""
    lines = path.read_bytes().splitlines(keepends=True)
    while lines and _is_after(iteration, lines[-1]):
        lines.pop()
    os.truncate(path, sum(map(len, lines)))


def _is_after(iteration: int, line: bytes) -> bool:
    try:
        return json.loads(line)["iteration"] > iteration or not line.endswith(b"\n")
    except (ValueError, KeyError, TypeError):
        return True


class FirstEstimate(hooks.HookBase):
    """A line after the first iteration, and one after a few: how long the training will take. It
    stands behind Detectron2's IterationTimer, which leaves out the first 3 iterations."""

    ITERATIONS = 10

    def after_step(self) -> None:
        trainer = self.trainer
        num_done = trainer.iter + 1 - trainer.start_iter
        if num_done == 1:
            _logger.info(f"iteration {trainer.iter + 1} of {trainer.max_iter} is done")
        count = trainer.max_iter - trainer.iter - 1
        if num_done == self.ITERATIONS and count:
            seconds = count * trainer.storage.history("time").median(self.ITERATIONS)
            rest = f"{datetime.timedelta(seconds=round(seconds))}, without evaluations"
            _logger.info(f"on this machine the other {count} iterations will take about {rest}")
