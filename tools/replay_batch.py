"""Run a batch again whose loss or gradient was not finite, from the dump that the training left.

./run tools/replay_batch.py output/nonfinite/iter_0001234

Prints the losses by level and where the first number is not finite. Give --import and --register as
the training had them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from focal_retina.engine import add_data_arguments, exit_status, prepare_process, user_errors
from focal_retina.engine.replay import replay


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path, help="the folder that the training's error names")
    add_data_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors():
        prepare_process(args.imports, args.register)
        for line in replay(args.dump):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
