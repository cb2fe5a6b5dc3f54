"""From a command line to a config that is known to work, or one line that says why not."""

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ..config import add_focal_retina_config
from ..config_file import merge_config_file, merge_options, with_values
from ..data import limit_pixels, register_from_spec
from ..data.classes import announce_classes, check_classes
from ..dataset_check import check_datasets, warn_of_unreached_objects
from ..losses.alpha import alpha_from_config
from ..losses.ops import choose_kernel
from ..modeling.meta_arch import class_counts_of
from .checkpoint import SafeCheckpointer
from .config_checks import check_best, check_keys, check_model, check_solver, check_values
from .console import user_errors
from .precision import precision_of, resolve_precision

_logger = logging.getLogger(__name__)


def setup_config(
    source: str | Path | None, opts: Sequence[str] = (), *, eval_only: bool = False, **data: Any
) -> CfgNode:
    """:func:`load_config`, with ``register`` and ``imports``; then the checks below."""
    cfg = load_config(source, opts, trained=eval_only, **data)
    check_output_dir(cfg.OUTPUT_DIR)
    check_config(cfg, eval_only=eval_only)
    return cfg


@user_errors()
def load_config(
    source: str | Path | None,
    opts: Sequence[str] = (),
    *,
    register: Sequence[str] = (),
    imports: Sequence[str] = (),
    resume: bool = False,
    trained: bool = True,
    num_processes: int = 1,
) -> CfgNode:
    """The one way from files and words to a frozen config: this machine has its MODEL.DEVICE, and
    no precision is ``auto``. A UserError for a missing file, an unknown key, a wrong type.

    Args:
        source: a yaml; or a training's folder: its ``config.yaml``, with the folder as OUTPUT_DIR.
        opts: keys and values in turn; they have the last word.
        register, imports, resume: see :func:`prepare_process` and :func:`resolve_precision`.
        trained: a training's folder, or its ``config.yaml``, stands for its ``model_final.pth``;
            with ``resume``, MODEL.WEIGHTS is the last checkpoint of OUTPUT_DIR.
        num_processes: on this machine. Several need a GPU each, or MODEL.DEVICE cpu.
    """
    prepare_process(imports, register)
    if not source:
        raise ValueError("no config: name one: --config-file configs/quickstart/shapes.yaml")
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.MODEL.DEVICE = ""  # the default; only it may become the CPU where there is no GPU
    file, run_opts = _open_run(str(source), opts, trained=trained, resume=resume)
    merge_config_file(cfg, file)
    if run_opts and cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = ""  # it says where the training was
    merge_options(cfg, [*run_opts, *opts])
    num_processes = max(num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # torchrun's
    cfg.MODEL.DEVICE = _find_device(cfg.MODEL.DEVICE, num_processes)
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    checkpointer = SafeCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR)
    if trained and resume and checkpointer.has_checkpoint():
        if not (weights := checkpointer.last_intact()):
            raise ValueError(f"no checkpoint in {cfg.OUTPUT_DIR} is intact")
        cfg.MODEL.WEIGHTS = weights
    cfg.freeze()
    announce_classes(cfg)
    return resolve_precision(cfg, resume=resume)


@user_errors()
def resolve_class_alpha(cfg: CfgNode) -> CfgNode:
    """``CLS_LOSS.CLASS_ALPHA`` auto as numbers: a trained model needs no training set."""
    if cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA != "auto":
        return cfg
    alpha = alpha_from_config(cfg, class_counts_of(cfg))
    return with_values(cfg, {"MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA": alpha})


def _open_run(
    source: str, opts: Sequence[str], *, trained: bool, resume: bool
) -> tuple[str, list[str]]:
    """The yaml of a source, and the options that a training's folder stands for."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    config, weights = folder / "config.yaml", folder / "model_final.pth"
    is_config = trained and path.name == config.name and (resume or weights.is_file())
    if not (path.is_dir() or is_config):
        return source, []
    words, needed = ["OUTPUT_DIR", str(folder)], [config]
    if trained and not resume and "MODEL.WEIGHTS" not in opts[::2]:
        words += ["MODEL.WEIGHTS", str(weights)]
        needed.append(weights)
    if missing := [file for file in needed if not file.is_file()]:
        raise FileNotFoundError(f"{folder} is no finished training: there is no file {missing[0]}")
    return str(config), words


def _find_device(name: str, num_processes: int) -> str:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not name and not num_gpus and num_processes == 1:
        _logger.info("PyTorch finds no GPU: MODEL.DEVICE is cpu")
        return "cpu"
    name = name or "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and max(num_processes, (device.index or 0) + 1) > num_gpus:
        raise ValueError(
            f"MODEL.DEVICE is {name}, and PyTorch finds {num_gpus} GPUs for the {num_processes} "
            "processes on this machine: set MODEL.DEVICE cpu, or leave the key out"
        )
    return name


def prepare_process(imports: Sequence[str] = (), register: Sequence[str] = ()) -> None:
    """Fill this process's registries: import Python files, such as one that registers a loss, and
    register data sets, each ``NAME=PATH``, see ``--register``. Again changes nothing."""
    for path in imports:
        _import_file(Path(path).resolve())
    for spec in register:
        register_from_spec(spec)


def _import_file(path: Path) -> None:
    name = path.stem
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"--import: there is no file {path}, or its name ends not in .py")
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    elif getattr(sys.modules[name], "__file__", None) != str(path):
        raise ValueError(f"--import {path}: a module named {name!r} is there already; rename yours")


@user_errors()
def check_config(
    cfg: CfgNode, *, resume: bool = False, eval_only: bool = False, num_processes: int = 1
) -> None:
    """Check what can be checked before a training or an evaluation: a UserError for a wrong class
    count, unusable data and the like. With ``resume`` a checkpoint in OUTPUT_DIR takes the place of
    MODEL.WEIGHTS; ``num_processes`` is what torchrun does not say."""
    needed = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[needed]:
        raise ValueError(f"DATASETS.{needed} is empty: name a data set")
    check_values(cfg)
    check_model(cfg)
    check_keys(cfg)
    check_classes(cfg, eval_only=eval_only)
    if not eval_only:
        check_best(cfg)
        check_solver(cfg, int(os.environ.get("WORLD_SIZE", num_processes)))
        precision_of(cfg)  # evaluation has a precision of its own
        kernel, device = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL, cfg.MODEL.DEVICE
        choose_kernel(kernel, torch.device(device).type, torch.float32)
    checkpointer = SafeCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR)
    if not (resume and checkpointer.has_checkpoint()):
        _check_weights(cfg.MODEL.WEIGHTS, needed=eval_only)
        final = Path(cfg.OUTPUT_DIR, "model_final.pth").resolve()
        if not eval_only and Path(cfg.MODEL.WEIGHTS).resolve() == final:
            advice = "the training replaces it: set another OUTPUT_DIR"
            raise ValueError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is in OUTPUT_DIR; {advice}")
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return  # torchrun's other processes: data are checked once a machine
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK
    how = {"mode": options.MODE, "num_decoded": options.NUM_DECODED}
    reports = check_datasets(() if eval_only else cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, **how)
    for report in reports:
        _logger.info(report.summary())
    warn_of_unreached_objects(cfg, reports)


@user_errors()
def check_output_dir(output_dir: str) -> None:
    """Make the folder; UserError where it can't be written."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {output_dir} cannot be written: {error.strerror}") from error


def _check_weights(path: str, *, needed: bool) -> None:
    if not path and needed:
        raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint to evaluate")
    try:
        local_path = PathManager.get_local_path(path.partition("?")[0])  # downloads a URL
    except OSError as error:
        raise OSError(f"MODEL.WEIGHTS {path} cannot be fetched: {error}") from error
    if path and not os.path.isfile(local_path):
        raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist")
