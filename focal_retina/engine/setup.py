"""From a command line to a config that is known to work, or one line that says why not."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from ..config import add_focal_retina_config
from ..config_file import merge_config_file
from ..data import check_num_classes, register_from_spec
from .precision import precision_of

__all__ = ["UserError", "prepare_process", "setup_config", "user_errors"]

_DENSE_DETECTORS = ("FocalRetinaNet", "RetinaNet")


class UserError(Exception):
    """What the user can mend, in one line: what is wrong, where, and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of reading and building into :class:`UserError`.

    For what runs before the first iteration. A KeyError is a key that Detectron2's config does not
    have, an AssertionError what its parser says of trailing arguments.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, AssertionError) as error:
        # The str() of a KeyError is the repr of its argument.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(" ".join(str(message).split())) from error


def setup_config(args: argparse.Namespace) -> CfgNode:
    """Read the config, register the data sets of ``--register``, and check what can be checked
    before training.

    Args:
        args: of Detectron2's ``default_argument_parser``, with ``imports`` and ``register`` as
            :func:`prepare_process` has them.

    Returns:
        The frozen config, its ``MODEL.DEVICE`` one that this machine has.

    Raises:
        UserError: missing file, unknown key, wrong class count, unwritable output and the like.
    """
    with user_errors():
        prepare_process(args)
        cfg = _read_config(args)
        _check_config(cfg, resume=args.resume, eval_only=args.eval_only)
    return cfg


def prepare_process(args: argparse.Namespace) -> None:
    """Fill this process's registries with what the command line names; again changes nothing.

    Args:
        args: ``imports``, Python files to import, such as one that registers a loss; ``register``,
            data sets as ``NAME=ANNOTATIONS.json:IMAGE_DIR``.
    """
    for path in args.imports:
        _import_file(Path(path).resolve())
    for spec in args.register:
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
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _read_config(args: argparse.Namespace) -> CfgNode:
    if not args.config_file:
        raise ValueError(
            "no config: name one, such as --config-file configs/quickstart/shapes_R18.yaml"
        )
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _check_config(cfg: CfgNode, *, resume: bool, eval_only: bool) -> None:
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} is not a registered model"
        )
    if cfg.MODEL.META_ARCHITECTURE in _DENSE_DETECTORS:
        train_names = () if eval_only else cfg.DATASETS.TRAIN
        check_num_classes(cfg.MODEL.RETINANET.NUM_CLASSES, [*train_names, *cfg.DATASETS.TEST])
    if not eval_only:  # evaluation runs in fp32, whatever a checkpoint was trained in
        precision_of(cfg)
    _check_output_dir(cfg.OUTPUT_DIR)
    has_checkpoint = DetectionCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint()
    if cfg.MODEL.WEIGHTS and not (resume and has_checkpoint):
        _check_weights(cfg.MODEL.WEIGHTS)


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
