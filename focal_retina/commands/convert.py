"""Convert RetinaNet weights between Detectron2 and other libraries.

    focal-retina convert --from torchvision-v1 --to detectron2 --input in.pth --output out.pth

Files end in .pth, .pt, .pkl or .safetensors. What is changed on the way is printed. Where something
cannot be carried over, nothing is written, unless --allow-missing is given. See
docs/convert_weights.md.
"""

import argparse
from pathlib import Path

LIBRARIES = ["detectron", "detectron2", "mmdet", "mmdet-caffe", "odtk", "odtk-0.2.0"]
LIBRARIES += ["torchvision-v1", "torchvision-v2"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, name in (("--from", "source"), ("--to", "target")):
        parser.add_argument(flag, dest=name, choices=LIBRARIES, required=True, help="a library")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="weights")
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="with --from detectron2")
    parser.add_argument("--num-classes", type=int, help="without background; default: 80")
    parser.add_argument("--num-anchors", type=int, help="at a position; default: 9")
    parser.add_argument("--aspect-ratios", type=float, nargs="+", help="default: .5 1 2")
    parser.add_argument("--bn-eps", type=float, default=1e-5, help="of the source")
    parser.add_argument("--allow-missing", action="store_true", help="write what is not complete")
    parser.add_argument("--config-out", type=Path, metavar="FILE", help="yaml of what it needs")


def run(args: argparse.Namespace) -> None:
    from ..engine import UserError, user_errors
    from ..interop.weight_files import convert_file, write_conversion

    names = ("num_classes", "num_anchors", "aspect_ratios", "config_file", "bn_eps")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    with user_errors():
        conversion = convert_file(args.input, args.source, args.target, **given)
    print(*conversion.report(), sep="\n")
    if not (conversion.is_complete or args.allow_missing):
        what = "what is listed as unused, missing or differs cannot be carried over"
        hint = "nothing is written without --allow-missing"
        raise UserError(f"{args.input}: {what} to {args.target}; {hint}")
    with user_errors():
        write_conversion(conversion, args.output, args.config_out)
    print(f"{len(conversion.tensors)} tensors: {args.output}")
