"""Export a model: model.pt2 (torch.export), model.onnx and, with --int8, model_int8.onnx.

./run tools/export_model.py --model output/quickstart/shapes_R18 --int8 100 --evaluate --benchmark
./run tools/export_model.py --config-file FILE --no-nms MODEL.WEIGHTS model.pth

Each is compared with the model in PyTorch on images of DATASETS.TEST; exit status 1: it differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.timing import machine, markdown, measure
from focal_retina.engine import exit_status, user_errors
from focal_retina.export import deployment
from focal_retina.export.command_line import add_model_arguments, read_model_config
from focal_retina.export.comparison import sample_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser, "a training's folder: config.yaml and model_final.pth")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: export/ in OUTPUT_DIR")
    parser.add_argument("--no-nms", action="store_true", help="graphs end at logits and deltas")
    parser.add_argument("--int8", type=int, metavar="N", help="calibrate on N of DATASETS.TRAIN")
    parser.add_argument("--images", type=int, default=20, help="to compare on, and to time")
    parser.add_argument("--evaluate", action="store_true", help="AP of each on DATASETS.TEST")
    parser.add_argument("--benchmark", action="store_true", help="time each, in turn")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    args.opts += ["MODEL.DEVICE", "cpu"]
    if args.images < 1 or (args.int8 is not None and args.int8 < 1):
        parser.error("--images and --int8: at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cfg = read_model_config(args)
    with user_errors():
        images = list(sample_images(cfg.DATASETS.TEST, args.images))
        folder = args.output or Path(cfg.OUTPUT_DIR, "export")
        predictors = deployment.export(cfg, folder, not args.no_nms, args.int8)
    agrees = deployment.compare_all(predictors, images)
    if args.evaluate:
        print(deployment.evaluate_all(predictors, cfg), flush=True)
    if args.benchmark:
        print(*(f"{k}: {v}" for k, v in machine(torch.device("cpu")).items()), sep=", ")
        case = deployment.timing_case(predictors, images)
        print(*map(markdown, measure([case], torch.device("cpu"), runs=7)), sep="\n")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
