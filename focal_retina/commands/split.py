"""Split a data set into train.json, val.json and test.json, in COCO format.

    focal-retina split --register mine=all.json:images --output splits
    focal-retina split --register mine=all.json:images --val 0.1 --test 0 --output splits

Classes are spread evenly; images that are nearly the same stay on one side. The images stay where
they are. The same seed gives the same split.
"""

import argparse
import shlex
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "the data set, as for train"
    add("--register", required=True, metavar="NAME=ANNOTATIONS.json:IMAGE_DIR", help=what)
    add("--val", type=float, default=0.2, help="share of the images for val.json; 0: none")
    add("--test", type=float, default=0.1, help="share of the images for test.json; 0: none")
    add("--seed", type=int, default=0, help="another seed gives another split")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for the json files")


def run(args: argparse.Namespace) -> None:
    from detectron2.data import MetadataCatalog
    from tabulate import tabulate

    from ..data import limit_pixels, register_from_spec
    from ..dataset_check.split import split_dataset
    from ..engine import user_errors

    limit_pixels(sys.maxsize)  # which a training sets by INPUT.MAX_IMAGE_PIXELS
    with user_errors():
        name, *others = register_from_spec(args.register)
        if others:
            raise ValueError(f"{args.register} is split already: {', '.join([name, *others])}")
        fractions = {"train": 1 - args.val - args.test, "val": args.val, "test": args.test}
        fractions = {side: x for side, x in fractions.items() if x or side == "train"}
        table = split_dataset(name, args.output, fractions, args.seed)
    print(tabulate(table, headers="keys"))
    image_root = MetadataCatalog.get(name).image_root
    for side in fractions:
        spec = f"{name}_{side}={args.output / side}.json:{image_root}"
        print(f"--register {shlex.quote(spec)}")
