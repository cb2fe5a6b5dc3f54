"""Export a model: model.pt2 (torch.export), model.onnx and, with --int8, model_int8.onnx.

    focal-retina export --model output/quickstart/shapes --int8 100 --evaluate --benchmark
    focal-retina export --config-file FILE --no-nms MODEL.WEIGHTS model.pth

Each is compared with the model in PyTorch on images of DATASETS.TEST; exit status 1: it differs.
"""

import argparse
from pathlib import Path

from . import add_config_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="DIR", help="a training's folder")
    model.add_argument("--config-file", metavar="FILE", help="a yaml, with MODEL.WEIGHTS")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: export/ in OUTPUT_DIR")
    parser.add_argument("--no-nms", action="store_true", help="graphs end at logits and deltas")
    parser.add_argument("--int8", type=int, metavar="N", help="calibrate on N of DATASETS.TRAIN")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="to compare on, or 0")
    parser.add_argument("--evaluate", action="store_true", help="AP of each on DATASETS.TEST")
    parser.add_argument("--benchmark", action="store_true", help="time each on the images")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..deploy import build_meta, comparison, write_targets
    from ..engine import UserError, load_config, load_detector, training_errors, user_errors

    if args.images < args.benchmark or (args.int8 is not None and args.int8 < 1):
        raise UserError("--images: 0 or more, with --benchmark at least 1; --int8: at least 1")
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    cfg = load_config(args.model or args.config_file, opts, **data_of(args))
    with user_errors():
        if args.int8 and not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: --int8 calibrates on its images")
        sample = comparison.sample_images
        images = list(sample(cfg.DATASETS.TEST, args.images)) if args.images else []
        calibration = sample(cfg.DATASETS.TRAIN, args.int8) if args.int8 else None
        model = load_detector(cfg)
        meta = build_meta(cfg, model, with_nms=not args.no_nms)
        evaluated = cfg.DATASETS.TEST if args.evaluate else ()
        datasets = comparison.indices_in_datasets(meta.classes, evaluated)
        folder = args.output or Path(cfg.OUTPUT_DIR, "export")
        paths = write_targets(model, meta, folder, calibration)
        predictors = comparison.load_all(model, meta, paths)
    print(f"written: {', '.join(map(str, paths.values()))}", flush=True)
    if meta.threshold is not None:
        print(f"meta.json has the score threshold of the best F1, {meta.threshold:.3f}")
    agrees = comparison.compare_all(predictors, images)
    if args.evaluate:
        with training_errors():
            print(comparison.ap_table(predictors, datasets, Path(cfg.OUTPUT_DIR, "inference")))
    if args.benchmark:
        print(comparison.time_table(predictors, images))
    return 0 if agrees else 1
