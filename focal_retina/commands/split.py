"""Split a data set into train.json, val.json and test.json, in COCO format.

    focal-retina split --register mine=all.json:images --output splits
    focal-retina split --register mine=all.json:images --val 0.1 --test 0 --output splits

Classes are spread evenly; images that are nearly the same stay on one side. The images stay where
they are. The same seed gives the same split.
"""

import argparse
from pathlib import Path

from . import add_data_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add = parser.add_argument
    add("--val", type=float, default=0.2, help="share of the images for val.json; 0: none")
    add("--test", type=float, default=0.1, help="share of the images for test.json; 0: none")
    add("--seed", type=int, default=0, help="another seed gives another split")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for the json files")


def run(args: argparse.Namespace) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from tabulate import tabulate

    from ..data.split import split_coco_json
    from ..engine import prepare_process, user_errors

    with user_errors():
        before = {*DatasetCatalog}
        prepare_process(args.imports, args.register)
        names = sorted({*DatasetCatalog} - before)
        if len(names) != 1:
            raise ValueError(f"--register {names or 'nothing'}: name the one data set to split")
        metadata = MetadataCatalog.get(names[0])
        fractions = {"train": 1 - args.val - args.test, "val": args.val, "test": args.test}
        fractions = {x: share for x, share in fractions.items() if share or x == "train"}
        source = metadata.json_file, metadata.image_root
        table = split_coco_json(*source, args.output, fractions, args.seed)
    print(tabulate(table, headers="keys"))
    for side in fractions:
        spec = f"{names[0]}_{side}={args.output / side}.json:{metadata.image_root}"
        print(f"--register {spec}")
