"""Check the data sets of a config: images, annotations, classes, and whether anchors reach them.

    focal-retina check --config-file configs/quickstart/shapes.yaml
    focal-retina check --config-file FILE --register mine=train.json:images \\
        --html report.html DATASETS.TRAIN "('mine',)" DATASETS.TEST "()"

Exit status 1: errors were found; 2: the config or an annotation file can't be read.
"""

import argparse
from pathlib import Path

from . import add_config_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="its DATASETS.TRAIN and TEST")
    add("--html", type=Path, metavar="FILE", help="write a report to FILE, too")
    add("--all-images", action="store_true", help="decode all, not only a sample")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..dataset_check.report import config_problems, inspect_datasets, write_html
    from ..engine import load_config, user_errors
    from ..engine.config_checks import check_model

    cfg = load_config(args.config_file, args.opts, **data_of(args))
    with user_errors():
        check_model(cfg)
        problems = config_problems(cfg)
        reports = inspect_datasets(cfg, all_images=args.all_images)
        if args.html:
            write_html(reports, problems, args.config_file, args.html)
    print("\n\n".join([*problems, *map(str, reports)]))
    return int(bool(problems) or any(x.of_degree("error") for x in reports))
