"""Check the data sets of a config: images, annotations, classes, and whether anchors reach them.

    ./run tools/check_dataset.py --config-file configs/quickstart/shapes_R18.yaml
    ./run tools/check_dataset.py --config-file FILE --register mine=train.json:images \\
        --html report.html DATASETS.TRAIN "('mine',)" DATASETS.TEST "()"

Exit status 1: errors were found; 2: the config or an annotation file can't be read.
"""

import argparse
import sys
from pathlib import Path

from focal_retina.analysis.dataset_report import config_problems, inspect_datasets, write_html
from focal_retina.engine import add_data_arguments, exit_status, load_config, user_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="its DATASETS.TRAIN and TEST")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report to FILE, too")
    parser.add_argument("--all-images", action="store_true", help="decode all, not only a sample")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs="*", help="config keys and their values")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_args()
    cfg = load_config(args.config_file, args.opts, register=args.register, imports=args.imports)
    with user_errors():
        problems = config_problems(cfg)
        inspections = inspect_datasets(cfg, all_images=args.all_images)
        if args.html:
            write_html(inspections, problems, args.config_file, args.html)
    print("\n\n".join([*problems, *map(str, inspections)]))
    return int(bool(problems) or any(x.has_errors for x in inspections))


if __name__ == "__main__":
    sys.exit(exit_status(main))
