"""Draw the paper's figures 1, 5, 6 and 7 from the loss modules: a PNG and a json each.

./run tools/plot_losses.py
./run tools/plot_losses.py --output DIR
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from focal_retina.analysis.loss_shapes import figures
from focal_retina.analysis.plots import draw_loss_figure
from focal_retina.engine import exit_status, user_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/losses"), metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    output = parse_args(argv).output
    with user_errors():
        output.mkdir(parents=True, exist_ok=True)
    for figure in figures():
        draw_loss_figure(figure, output / f"{figure.name}.png")
        (output / f"{figure.name}.json").write_text(json.dumps(asdict(figure)) + "\n")
        print(f"{figure.title}: {output / figure.name}.png")


if __name__ == "__main__":
    sys.exit(exit_status(main))
