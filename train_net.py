"""Train and evaluate, with Detectron2's command line.

    ./run train_net.py --config-file configs/quickstart/shapes_R18.yaml
    ./run train_net.py --config-file FILE --resume
    ./run train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model.pth
    ./run train_net.py --config-file FILE --register mine=train.json:images \\
        DATASETS.TRAIN "('mine',)" …
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from focal_retina.analysis.report import write_training_report
from focal_retina.engine import Trainer, UserError, prepare_process, setup_config, user_errors


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=ANNOTATIONS.json:IMAGE_DIR",
        help="register a COCO-format data set, for DATASETS.TRAIN and TEST; repeatable",
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="FILE.py",
        help="import a file first, such as one that registers a loss; repeatable",
    )
    return parser.parse_args()


def main(args: argparse.Namespace, cfg: CfgNode) -> None:
    prepare_process(args)  # one that `launch` started has empty registries
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="focal_retina")
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        # Processes that share cores stall each other if each brings a thread for every core.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))

    if args.eval_only:
        with user_errors():
            model = Trainer.build_model(cfg)
            DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(
                cfg.MODEL.WEIGHTS, resume=args.resume
            )
        Trainer.test(cfg, model)
        return

    with user_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([hooks.CallbackHook(after_train=report_if_finished)])
    trainer.train()


def report_if_finished(trainer: Trainer) -> None:
    if trainer.iter + 1 >= trainer.max_iter:
        write_training_report(trainer.cfg)


def run() -> int:
    args = parse_args()
    try:
        cfg = setup_config(args)
        machines = {
            "num_machines": args.num_machines,
            "machine_rank": args.machine_rank,
            "dist_url": args.dist_url,
        }
        launch(main, args.num_gpus, **machines, args=(args, cfg))
    except UserError as error:
        print(f"train_net.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "train_net.py: interrupted; --resume goes on from the last checkpoint", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
