"""Draw a figure of the paper, as a PNG with its numbers beside it as json.

    focal-retina figure losses --output output/losses
    focal-retina figure loss-cdf --config-file FILE MODEL.WEIGHTS model.pth
    focal-retina figure speed-accuracy --run S=output/quickstart/shapes --sizes 96 128 160

losses: figures 1, 5, 6 and 7. loss-cdf: figure 4, which predictions on DATASETS.TEST hold the loss
of a model. speed-accuracy: figure 2, time and AP by image size; again, it measures what is new.
"""

import argparse
from pathlib import Path
from typing import Any

from . import add_config_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("figure", choices=("losses", "loss-cdf", "speed-accuracy"), help="which")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: in output/")
    parser.add_argument("--images", type=int, help="loss-cdf: 500 at most; speed-accuracy: 50")
    cdf = parser.add_argument_group("loss-cdf")
    cdf.add_argument("--config-file", metavar="FILE", help="or the folder of a training")
    cdf.add_argument("--gamma", type=float, action="append", help="repeatable; default: 0 .5 1 2")
    cdf.add_argument("--alpha", type=float, help="of the shares; default: the config's")
    speed = parser.add_argument_group("speed-accuracy")
    what = "a trained model, or the folder of a training; repeatable"
    names = "NAME=CONFIG:WEIGHTS or NAME=DIR"
    speed.add_argument("--run", action="append", default=[], metavar=names, help=what)
    speed.add_argument("--sizes", type=int, nargs="+", help="shorter sides; default: the paper's")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..engine import user_errors

    data = {"opts": args.opts, **data_of(args)}
    draw = {"losses": _losses, "loss-cdf": _loss_cdf, "speed-accuracy": _speed_accuracy}
    with user_errors():
        if args.images is not None and args.images < 1:
            raise ValueError(f"--images {args.images}: at least 1")
        draw[args.figure](args, data)


def _losses(args: argparse.Namespace, data: dict[str, Any]) -> None:
    from ..figures.loss_curves import figures, write_loss_figure

    output = _folder(args.output or Path("output/losses"))
    for figure in figures():
        print(f"{figure.title}: {write_loss_figure(figure, output)}")


def _loss_cdf(args: argparse.Namespace, data: dict[str, Any]) -> None:
    from ..engine import setup_config
    from ..figures.loss_cdf import hardest_shares, measure_loss_cdf

    cfg = setup_config(args.config_file, **data, eval_only=True)
    alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA if args.alpha is None else args.alpha
    if alpha > 1:
        raise ValueError(f"--alpha {alpha:g}: at most 1")
    output = _folder(args.output or Path(cfg.OUTPUT_DIR) / "loss_distribution")
    gammas, count = args.gamma or (0, 0.5, 1, 2), args.images or 500
    measured = measure_loss_cdf(cfg, output, gammas=gammas, alpha=alpha, max_images=count)
    counts = [f"{count:,} {sign}" for sign, count in measured["samples"].items()]
    print(f"{measured['images']} images", *counts, sep=", ")
    for share, held in hardest_shares(measured).items():
        print(f"{share}: {held} of their loss")
    print(f"pictures and numbers: {output}")


def _speed_accuracy(args: argparse.Namespace, data: dict[str, Any]) -> None:
    from ..figures.speed_accuracy import PAPER_SIZES, draw_speed_accuracy, measure_runs, parse_run

    sizes = args.sizes or PAPER_SIZES
    if not args.run or min(sizes) < 1:
        raise ValueError("speed-accuracy needs --run, at least one, and --sizes of at least 1")
    output = _folder(args.output or Path("output/speed_accuracy"))
    runs = list(map(parse_run, args.run))
    measured = measure_runs(runs, sizes, output, num_images=args.images or 50, **data)
    draw_speed_accuracy(measured, output / "fig2.png")
    print(f"figure: {output / 'fig2.png'}")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
