"""Exact resume: the one training of a folder, its settings and its random states."""

import contextlib
import fcntl
import logging
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .console import UserError

_logger = logging.getLogger(__name__)

# They decide the order of the images, and what the optimizer's state is.
_FIXED = {"SEED", "MODEL.FOCAL_RETINA.OPTIMIZER"}


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
    values = flatten_results_dict(yaml.safe_load(cfg.dump()))  # where a tuple is a list
    return {
        **{key.replace("/", "."): value for key, value in values.items()},
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


def check_groups(begun_with: list[dict], optimizer: Optimizer) -> None:
    """A ValueError where a checkpoint's parameter groups are not of the optimizer's sizes: torch
    would refuse them, too, and name no key."""
    if [len(x["params"]) for x in begun_with] != [len(x["params"]) for x in optimizer.param_groups]:
        keys = "MODEL.BACKBONE.FREEZE_AT, SOLVER.WEIGHT_DECAY_* and SOLVER.BIAS_LR_FACTOR"
        raise ValueError(f"--resume cannot regroup the parameters: leave {keys}")


def restore_solver(groups: list[dict], optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Obey this config's values of SOLVER, which the optimizer's ``groups`` had before a checkpoint
    was loaded."""
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    if isinstance(scheduler, LRMultiplier):
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate


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
