"""What the command-line tools have in common."""

import argparse
import sys
from collections.abc import Callable

from .setup import UserError


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--register`` and ``--import``, for :func:`~focal_retina.engine.prepare_process`."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=ANNOTATIONS.json:IMAGE_DIR",
        help="register a COCO-format data set, for DATASETS.TRAIN and TEST; repeatable",
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="FILE.py",
        help="import a file first, such as one that registers a loss; repeatable",
    )


def exit_status(
    main: Callable[[], int | None], interrupted: str = "interrupted", prog: str | None = None
) -> int:
    """Call ``main`` and return the process's exit status.

    Its own if it returns one, else 0; 2 for a :class:`UserError` and 130 for Ctrl-C, each told in
    one line on stderr.

    Args:
        main: the tool.
        interrupted: what to say after Ctrl-C.
        prog: name of the command in those lines; default: the script's.
    """
    name = prog or sys.argv[0].rsplit("/", maxsplit=1)[-1]
    try:
        return main() or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return 130
