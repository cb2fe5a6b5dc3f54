"""Find objects in images, folders, globs, videos and a webcam.

    focal-retina predict --model output/quickstart/shapes --output found photo.jpg clip.mp4
    focal-retina predict --model export/model.onnx --json found.json 'photos/**/*.jpg'
    focal-retina predict --model export/model.onnx --json found.json --tile 640 aerial.tif
    focal-retina predict --model output/quickstart/shapes --output found 0 \\
        MODEL.RETINANET.SCORE_THRESH_TEST 0.3

0 is the first webcam. KEY VALUE behind the inputs changes the config. What can't be read is
reported and passed over; the exit status is then 1. Only a .pt2 can run code on opening, and so
needs --allow-code; an .onnx and a training's folder can't.
"""

import argparse
from pathlib import Path

from . import add_data_arguments, data_of, split_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="PATH", help="a training's folder, *.pt2 or *.onnx")
    model.add_argument("--config-file", metavar="FILE", help="a yaml, with MODEL.WEIGHTS")
    add = parser.add_argument
    add("--allow-code", action="store_true", help="open a .pt2, running Python code that is in it")
    add("--output", type=Path, metavar="DIR", help="pictures and videos go here")
    add("--json", type=Path, metavar="FILE", help="detections in COCO's format")
    add("--threshold", type=float, help="lowest score; default: the model's, of its best F1, or .5")
    add("--batch-size", type=int, default=1, help="images, or tiles, at a time")
    add("--tile", type=int, metavar="PIXELS", help="see tiles of this side beside the whole image")
    add("--overlap", type=float, help="of neighboring tiles, a part of their side; default: 0.2")
    add_data_arguments(parser)
    what = "files, folders, globs or webcams; then KEY VALUE"
    add("words", nargs="+", metavar="INPUT", help=what)


def run(args: argparse.Namespace) -> int:
    from ..deploy import TiledPredictor, load_predictor
    from ..deploy.media import CocoWriter, PictureWriter, find_sources
    from ..deploy.predictor import predict_sources
    from ..engine import UserError, user_errors

    if not (args.output or args.json):
        raise UserError("nothing to write: name --output, --json or both")
    if not 0 <= (args.threshold or 0) <= 1 or args.batch_size < 1:
        raise UserError("--threshold: from 0 to 1; --batch-size: at least 1")
    if args.tile is None and args.overlap is not None:
        raise UserError("--overlap is that of tiles: name --tile, too")
    inputs, opts = split_options(args.words)
    if not inputs:
        raise UserError("no INPUT: name files, folders, globs or webcams before KEY VALUE")
    sources = find_sources(inputs)
    writers: list[CocoWriter | PictureWriter] = []
    with user_errors():
        how = {**data_of(args), "allow_code": args.allow_code}
        predictor = load_predictor(args.model or args.config_file, opts, **how)
        if args.tile is not None:
            tiles = {} if args.overlap is None else {"overlap": args.overlap}
            tiles |= {"tile": args.tile, "batch_size": args.batch_size}
            predictor = TiledPredictor(predictor, **tiles)
        meta, threshold = predictor.meta, args.threshold
        if threshold is None:
            threshold = max(0.5 if meta.threshold is None else meta.threshold, meta.score_thresh)
            origin = "the default" if meta.threshold is None else "the model's, of its best F1"
            print(f"score threshold {threshold:.3f}: {origin}; --threshold sets another")
        if args.json:
            writers.append(CocoWriter(args.json, meta))
        if args.output:
            writers.append(PictureWriter(args.output, sources, meta.classes))
    limits = {"batch_size": args.batch_size, "threshold": threshold}
    try:
        failed = predict_sources(predictor, sources, writers, **limits)
    except OSError as error:  # of a source it would be passed over
        raise UserError(f"the results can't be written: {error}") from error
    return 1 if failed else 0
