"""From a command line to a config that is known to work, or one line that says why not."""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from ..config import add_focal_retina_config
from ..config_file import merge_config_file
from ..data import check_num_classes, limit_pixels, register_from_spec
from ..dataset_check import check_datasets, warn_of_unreached_objects
from .checkpoint import SafeCheckpointer
from .config_checks import check_keys, check_solver, check_values
from .precision import precision_of, resolve_precision

_DENSE_DETECTORS = ("FocalRetinaNet", "RetinaNet")


class UserError(Exception):
    """What the user can mend, in one line: what is wrong, where, and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of reading and building into :class:`UserError`, before the first iteration.

    A KeyError is a key that Detectron2's config does not have, an AssertionError what its parser
    says of trailing arguments, an ImportError an extra that is not installed.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, AssertionError, ImportError) as error:
        # The str() of a KeyError is the repr of its argument.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(" ".join(str(message).split())) from error


@user_errors()
def setup_config(
    source: str | Path | None,
    opts: Sequence[str] = (),
    *,
    register: Sequence[str] = (),
    imports: Sequence[str] = (),
    resume: bool = False,
    eval_only: bool = False,
    num_processes: int = 1,
) -> CfgNode:
    """:func:`load_config`, and check what can be checked before training.

    Args:
        source, opts, register, imports: see :func:`load_config`.
        resume: a checkpoint in OUTPUT_DIR takes the place of MODEL.WEIGHTS.
        eval_only: the training set is neither needed nor checked.
        num_processes: of the training, where torchrun does not say it.

    Raises:
        UserError: missing file, unknown key, wrong class count, unusable data, unwritable output
            and the like.
    """
    cfg = load_config(source, opts, register=register, imports=imports, resume=resume)
    _check_config(cfg, resume=resume, eval_only=eval_only, num_processes=num_processes)
    _check_data(cfg, eval_only=eval_only)
    return cfg


@user_errors()
def load_config(
    source: str | Path | None,
    opts: Sequence[str] = (),
    *,
    register: Sequence[str] = (),
    imports: Sequence[str] = (),
    resume: bool = False,
) -> CfgNode:
    """The one way from files and words to a config.

    Args:
        source: a yaml; or the folder of a finished training, which is its ``config.yaml`` with
            ``model_final.pth`` as MODEL.WEIGHTS.
        opts: keys and values in turn; they have the last word.
        register, imports: see :func:`prepare_process`.
        resume: see :func:`resolve_precision`.

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
    path = Path(source)
    if path.is_dir():
        weights = path / "model_final.pth"
        for file in (path / "config.yaml", weights):
            if not file.is_file():
                raise FileNotFoundError(f"{path} is no finished training: there is no file {file}")
        opts = ["MODEL.WEIGHTS", str(weights), *opts]
        path = path / "config.yaml"
    merge_config_file(cfg, str(path))
    try:
        cfg.merge_from_list(list(opts))
    except (TypeError, AttributeError) as error:  # a key below a value, or a value such as {[]: 1}
        raise ValueError(f"KEY VALUE arguments {' '.join(map(str, opts))}: {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    limit_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    cfg.freeze()
    return resolve_precision(cfg, resume=resume)


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


def _check_config(cfg: CfgNode, *, resume: bool, eval_only: bool, num_processes: int) -> None:
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} is not a registered model"
        )
    check_values(cfg)
    if cfg.MODEL.META_ARCHITECTURE in _DENSE_DETECTORS:
        check_keys(cfg)
        names = [*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST]
        check_num_classes(cfg.MODEL.RETINANET.NUM_CLASSES, names)
    if not eval_only:
        check_solver(cfg, int(os.environ.get("WORLD_SIZE", num_processes)))
        precision_of(cfg)  # evaluation has a precision of its own
    _check_output_dir(cfg.OUTPUT_DIR)
    has_checkpoint = SafeCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint()
    if cfg.MODEL.WEIGHTS and not (resume and has_checkpoint):
        _check_weights(cfg.MODEL.WEIGHTS)


def _check_data(cfg: CfgNode, *, eval_only: bool) -> None:
    """Once a machine: torchrun's other processes come here too."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK
    reports = check_datasets(
        () if eval_only else cfg.DATASETS.TRAIN,
        cfg.DATASETS.TEST,
        mode=options.MODE,
        num_decoded=options.NUM_DECODED,
    )
    if cfg.MODEL.META_ARCHITECTURE in _DENSE_DETECTORS:
        warn_of_unreached_objects(cfg, reports)


def _check_output_dir(output_dir: str) -> None:
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {output_dir} cannot be written: {error.strerror}") from error


def _check_weights(path: str) -> None:
    try:
        # Downloads, where it is a URL
        local_path = PathManager.get_local_path(path.partition("?")[0])
    except OSError as error:
        raise OSError(f"MODEL.WEIGHTS {path} cannot be fetched: {error}") from error
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist")
