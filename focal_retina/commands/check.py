"""Check the data sets of a config: images, annotations, classes, and whether anchors reach them.

    focal-retina check --config-file configs/quickstart/shapes.yaml
    focal-retina check --config-file FILE --register mine=train.json:images \\
        --html report.html --pictures sheet.png DATASETS.TRAIN "('mine',)" DATASETS.TEST "()"

Exit status 1: errors were found; 2: the config or an annotation file can't be read.
"""

import argparse
from pathlib import Path

from . import add_config_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="its DATASETS.TRAIN and TEST")
    add("--html", type=Path, metavar="FILE", help="write a report to FILE, too")
    add("--all-images", action="store_true", help="decode and compare all, not only a sample")
    add("--pictures", type=Path, metavar="FILE.png", help="draw training images, augmented")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..dataset_check import check_datasets
    from ..dataset_check.report import config_problems, measure, write_html
    from ..engine import Trainer, load_config, user_errors
    from ..engine.config_checks import check_model
    from ..engine.training_pictures import draw_training_images
    from ..modeling import FocalRetinaNet

    opts = [*args.opts, "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config(args.config_file, opts, **data_of(args), trained=False)
    with user_errors():
        if args.pictures and not cfg.DATASETS.TRAIN:
            raise ValueError("--pictures draws images of DATASETS.TRAIN, which is empty")
        check_model(cfg)
        problems = config_problems(cfg)
        num_decoded = -1 if args.all_images else cfg.MODEL.FOCAL_RETINA.DATA_CHECK.NUM_DECODED
        sets = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
        reports = measure(cfg, check_datasets(*sets, num_decoded=num_decoded), suggest=True)
        print("\n\n".join([*problems, *map(str, reports)]))
        if args.html:
            write_html(reports, problems, args.config_file, args.html)
        failed = bool(problems) or any(x.of_degree("error") for x in reports)
        if args.pictures and failed:
            print(f"\n{args.pictures} is not drawn: correct the errors first")
        elif args.pictures:
            batches, names = Trainer.build_train_loader(cfg), reports[0].table.class_names
            pictures = cfg.INPUT.FORMAT, names, args.pictures
            draw_training_images(FocalRetinaNet(cfg), batches, *pictures)
    return int(failed)
