"""How the tools of this room are told which model: ``--model`` or ``--config-file``."""

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from ..engine import UserError, add_data_arguments, load_config, prepare_process, user_errors
from .predictor import Predictor, build_eager_predictor, load_predictor


def add_model_arguments(parser: argparse.ArgumentParser, kinds: str) -> None:
    """Add ``--model`` and ``--config-file``, one of which has to be there, ``--register`` and
    ``--import``.

    Args:
        parser: gets them.
        kinds: what ``--model`` can be, for the help text.
    """
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="PATH", help=kinds)
    model.add_argument("--config-file", metavar="FILE", help="weights: MODEL.WEIGHTS among KEYs")
    add_data_arguments(parser)


def read_model_config(args: argparse.Namespace) -> CfgNode:
    """The config of a training's folder, or of ``--config-file``.

    Args:
        args: of :func:`add_model_arguments`, with ``opts``, keys and values.

    Raises:
        UserError: a missing file, an unknown key and the like.
    """
    return load_config(
        args.model or args.config_file, args.opts, register=args.register, imports=args.imports
    )


def predictor_of(args: argparse.Namespace) -> Predictor:
    """What runs the model that the arguments name, see :func:`read_model_config`; ``--model`` can
    be an exported file, too.

    Raises:
        UserError: it can't be loaded.
    """
    with user_errors():
        if args.model is None or args.model.is_dir():
            return build_eager_predictor(read_model_config(args))
        if args.opts:
            raise UserError(f"{args.model} has its config in it: leave out {' '.join(args.opts)}")
        prepare_process(args.imports, args.register)
        return load_predictor(args.model)
