"""Run a batch again whose loss or gradient was not finite, from the dump that the training left.

    focal-retina replay output/nonfinite/iter_0001234

It prints the losses by level and where the first number is not finite. Give --import and --register
as the training had them.
"""

import argparse
from pathlib import Path

from . import add_data_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dump", type=Path, help="the folder that the training's error names")
    add_data_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..engine import prepare_process, user_errors
    from ..engine.nonfinite import replay

    with user_errors():
        prepare_process(**data_of(args))
        for line in replay(args.dump):
            print(line, flush=True)
