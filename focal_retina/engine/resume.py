"""Exact resume: random states, and the hooks that save, stop, and keep metrics without gaps."""

import contextlib
import fcntl
import json
import logging
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from fvcore.common.checkpoint import Checkpointer

from .console import UserError
from .launch_and_interrupt import Interrupted, StopRequest

_logger = logging.getLogger(__name__)

_WINDOW = 20  # iterations, of which Detectron2's writers take the median
# They decide the order of the images, and what the optimizer's state is.
_FIXED = {"SEED", "MODEL.FOCAL_RETINA.OPTIMIZER"}
# Timings of a process are not those of the next.
_CLOCKS = {"time", "data_time", "rank_data_time", "eta_seconds"}


class CheckpointHook(hooks.PeriodicCheckpointer):
    """Detectron2's periodic checkpoints, and one more where a signal asks to stop. It runs in every
    process: the checkpoint has the random states of all."""

    def __init__(self, checkpointer: Checkpointer, period: int, stop: StopRequest):
        super().__init__(checkpointer, period)
        self._stop = stop

    def after_step(self) -> None:
        """:class:`Interrupted` where a signal came and the iteration is saved."""
        signum = self._stop.agreed()
        if self._is_due() or signum is not None:
            self.trainer.gather_rng_states()
        self.step(self.trainer.iter)
        if signum is not None:
            self.save_unless_due()
            raise Interrupted(signum)

    def save_unless_due(self) -> None:
        if not self._is_due():
            iteration = self.trainer.iter
            self.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)

    def _is_due(self) -> bool:
        iteration = self.trainer.iter
        return (iteration + 1) % self.period == 0 or iteration >= self.max_iter - 1


class MetricsWriter(hooks.PeriodicWriter):
    """Detectron2's periodic writer, whose resumed ``metrics.json`` is that of one run: the
    checkpoint has the values that medians are taken of; lines written after it are dropped."""

    def __init__(self, writers: Sequence[EventWriter], period: int, metrics_file: Path):
        super().__init__(writers, period)
        self._metrics_file = metrics_file
        self._restored: dict[str, Any] | None = None

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
                _drop_metrics_after(last_write, self._metrics_file)

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


@contextlib.contextmanager
def only_training_in(folder: str | os.PathLike) -> Iterator[None]:
    """Keep a second training out of OUTPUT_DIR, by a UserError. The kernel ends that when this
    process ends."""
    if not comm.is_main_process() or int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    path = Path(folder, ".lock")
    with open(path, "a+") as file:
        try:
            # Unlike flock, it is not passed on to data workers, which may live a moment longer.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            what = f"OUTPUT_DIR {folder} is in use by another training, {path.read_text()}"
            raise UserError(f"{what}: wait for it, or set another OUTPUT_DIR") from error
        except OSError as error:
            _logger.warning(f"{path} cannot be locked against another training: {error}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def settings_of(cfg: CfgNode, num_images: int | None) -> dict[str, Any]:
    """All that decides the course of a run, for a checkpoint and :func:`check_settings`."""

    def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return {
        **dict(flat(yaml.safe_load(cfg.dump()))),  # where a tuple is a list
        "training images": num_images,
        "processes": comm.get_world_size(),
        "threads": torch.get_num_threads(),
    }


def check_settings(begun_with: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare :func:`settings_of` with those of the checkpoint: one line says what changes, a
    ValueError what a resumed run cannot obey."""
    changed = {
        key: f"{key} {begun_with[key]} → {value}"
        for key, value in settings.items()
        if key in begun_with and begun_with[key] != value and key != "OUTPUT_DIR"
    }
    if refused := ", ".join(changed[key] for key in sorted(changed.keys() & _FIXED)):
        raise ValueError(f"--resume cannot change {refused}: leave it, or set another OUTPUT_DIR")
    if changed.pop("MODEL.WEIGHTS", None):
        _logger.warning("--resume: the weights are the checkpoint's; MODEL.WEIGHTS is not read")
    if changed:
        _logger.warning(f"--resume: changed from here on: {', '.join(changed.values())}")


def rng_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global generators, and of this process's GPU."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    numpy_state = (name, np.asarray(keys).tolist(), *rest)
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    cpu = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    return cpu | gpu


def set_rng(state: dict[str, Any]) -> None:
    """Go on with what :func:`rng_state` returned; a GPU's state only where there is a GPU."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
