"""Measure inference time and AP of trained models at several image sizes: the paper's figure 2.

./run tools/speed_accuracy.py --run R18=output/quickstart/shapes_R18 --sizes 96 128 160
./run tools/speed_accuracy.py --run A=a.yaml:a.pth --run B=b.yaml:b.pth \\
    --register mine=val.json:images DATASETS.TEST "('mine',)"

Called again, it measures only what is new. Trailing arguments change every run's config.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from focal_retina.analysis.plots import draw_speed_accuracy
from focal_retina.analysis.speed_runs import measure_runs, parse_run
from focal_retina.engine import add_data_arguments, exit_status, user_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="NAME=CONFIG:WEIGHTS or NAME=DIR",
        help="a trained model, or a folder with config.yaml and model_final.pth; repeatable",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[400, 500, 600, 700, 800], help="shorter sides"
    )
    parser.add_argument("--images", type=int, default=50, help="how many to time, one by one")
    parser.add_argument("--output", type=Path, default=Path("output/speed_accuracy"), metavar="DIR")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if args.images < 1 or min(args.sizes) < 1:
        parser.error("--images and --sizes: at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors():
        args.output.mkdir(parents=True, exist_ok=True)
        runs = [parse_run(spec) for spec in args.run]
    measurements = measure_runs(args, runs, args.sizes, args.output)
    draw_speed_accuracy(measurements, args.output / "fig2.png")
    print(f"figure: {args.output / 'fig2.png'}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
