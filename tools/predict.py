"""Find objects in images, folders, globs, videos and a webcam.

./run tools/predict.py --model output/quickstart/shapes_R18 --output found photo.jpg clip.mp4 0
./run tools/predict.py --model export/model.onnx --json found.json 'photos/**/*.jpg'
./run tools/predict.py --config-file FILE --output found photos --opts MODEL.WEIGHTS model.pth

What can't be read is reported and passed over; the
exit status is then 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from focal_retina.engine import exit_status, user_errors
from focal_retina.export.command_line import add_model_arguments, predictor_of
from focal_retina.export.prediction import predict_sources
from focal_retina.export.sources import find_sources
from focal_retina.export.writers import CocoWriter, PictureWriter, ResultWriter


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser, "a training's folder, or a file *.pt2 or *.onnx")
    parser.add_argument("--output", type=Path, metavar="DIR", help="pictures and videos go here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="detections in COCO's format")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score; default: 0.5")
    parser.add_argument("--batch-size", type=int, default=1, help="exported files take 1 at a time")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or webcam")
    args = parser.parse_args(argv)
    if not (args.output or args.json):
        parser.error("nothing to write: name --output, --json or both")
    if not 0 <= args.threshold <= 1 or args.batch_size < 1:
        parser.error("--threshold: from 0 to 1; --batch-size: at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    sources = find_sources(args.inputs)
    with user_errors():
        predictor = predictor_of(args)
        writers: list[ResultWriter] = []
        if args.json:
            writers.append(CocoWriter(args.json, predictor.meta))
        if args.output:
            writers.append(PictureWriter(args.output, sources, predictor.meta.classes))
    unreadable = predict_sources(
        predictor, sources, writers, batch_size=args.batch_size, threshold=args.threshold
    )
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
