"""``focal-retina COMMAND``, or ``python -m focal_retina COMMAND``: a file a command.

A command is a module of this package. Its docstring is the help text, with an example;
``add_arguments(parser)`` declares its arguments and ``run(args)`` does the work, returning the exit
status or None for 0. It imports libraries in ``run``, so that ``--help`` comes at once.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import NEEDS_DETECTRON2

COMMANDS = {
    "train": "train and evaluate",
    "check": "what is wrong with a data set",
    "split": "a data set into train, val and test",
    "predict": "find objects in images, folders, videos and a webcam",
    "export": "a trained model to torch.export and ONNX",
    "convert": "weights to and from other libraries",
    "sweep": "train each row of a table with several seeds",
    "figure": "the paper's figures",
    "replay": "a batch whose loss was not finite, once more",
}
# What Ctrl-C prints, behind "interrupted"
GOES_ON = {
    "train": "; --resume goes on from the last checkpoint",
    "sweep": "; the same command goes on from here",
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command that ``argv`` (default: the process's arguments) names. Its messages and its
    help call it ``prog`` (default: ``focal-retina COMMAND``)."""
    name, *words = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        status = 0 if name in ("-h", "--help") else 2
        table = "\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items())
        usage = f"usage: focal-retina COMMAND …; each has --help\n\n{table}"
        print(usage, file=sys.stderr if status else sys.stdout)
        return status
    parser = make_parser(name, prog)
    args = parser.parse_intermixed_args(words)
    try:
        from ..engine import exit_status
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        print(f"{parser.prog}: {NEEDS_DETECTRON2}", file=sys.stderr)
        return 2
    goes_on = "" if getattr(args, "eval_only", False) else GOES_ON.get(name, "")
    return exit_status(lambda: _module(name).run(args), f"interrupted{goes_on}", parser.prog)


def make_parser(name: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command; ``prog`` as for :func:`main`."""
    module = _module(name)
    prog = prog or f"focal-retina {name}"
    parser = argparse.ArgumentParser(prog, None, module.__doc__, formatter_class=_HelpFormatter)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # argparse takes -1e-3 for an option
    module.add_arguments(parser)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """It adds defaults that are numbers, text or paths."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = type(action.default) in (int, float, str, type(Path()))
        told &= action.default != argparse.SUPPRESS
        return f"{action.help} (default: %(default)s)" if told else action.help or ""


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--register`` and ``--import``, for :func:`~focal_retina.engine.prepare_process`."""
    add = partial(parser.add_argument, action="append", default=[])
    what = (
        "register a data set, for DATASETS.TRAIN and TEST: COCO's ANNOTATIONS.json, or with the "
        "folder of its images, ANNOTATIONS.json:IMAGE_DIR; YOLO's data.yaml; a folder of Pascal "
        "VOC xml; CVAT's annotations.xml. Splits become sets of their own, NAME_train, NAME_val "
        "and NAME_test, by the names that they have; repeatable"
    )
    add("--register", metavar="NAME=PATH", help=what)
    what = "import a file first, such as one that registers a loss; repeatable"
    add("--import", dest="imports", metavar="FILE.py", help=what)


def data_of(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_data_arguments` declared, for :func:`~focal_retina.engine.load_config`."""
    return {"register": args.register, "imports": args.imports}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--register``, ``--import`` and trailing ``KEY VALUE``, for ``load_config``."""
    add_data_arguments(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="change the config")


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and the ``KEY VALUE`` behind them: from the first word that begins with a section of
    the config and is no file."""
    from detectron2.config import get_cfg

    sections = get_cfg().keys()
    is_key = [x.partition(".")[0] in sections and not Path(x).exists() for x in words]
    count = is_key.index(True) if True in is_key else len(words)
    return list(words[:count]), list(words[count:])
