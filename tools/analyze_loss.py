"""Show which predictions of a model hold its focal loss: the paper's figure 4, and more.
./run tools/analyze_loss.py --config-file FILE MODEL.WEIGHTS model.pth

The images are those of DATASETS.TEST; trailing arguments change the config as in train_net.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from focal_retina.analysis import loss_report
from focal_retina.analysis.labeled_predictions import build_labeled_loader, load_detector
from focal_retina.engine import add_data_arguments, exit_status, setup_config, user_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument(
        "--gamma", type=float, action="append", help="repeatable; default: 0, .5, 1 and 2"
    )
    parser.add_argument(
        "--alpha", type=float, help="of the shares; default: MODEL.RETINANET.FOCAL_LOSS_ALPHA"
    )
    parser.add_argument("--images", type=int, default=500, help="how many at most, at random")
    parser.add_argument(
        "--negatives", type=float, default=float("inf"), help="stop at so many; default: never"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: in OUTPUT_DIR")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if args.images < 1 or (args.alpha or 0) > 1:
        parser.error("--images: at least 1; --alpha: at most 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = setup_config(
        args.config_file, args.opts, register=args.register, imports=args.imports, eval_only=True
    )
    output = args.output or Path(cfg.OUTPUT_DIR) / "loss_distribution"
    alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA if args.alpha is None else args.alpha
    with user_errors():
        output.mkdir(parents=True, exist_ok=True)
        model = load_detector(cfg)
        loader = build_labeled_loader(cfg, args.images)
        measured = loss_report.measure_loss_distribution(
            model, loader, args.gamma or [0, 0.5, 1, 2], args.negatives
        )
    loss_report.write_loss_distribution(*measured, output, cfg=cfg, alpha=alpha)
    print(f"{loss_report.summary(*measured)}\npictures and numbers: {output}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
