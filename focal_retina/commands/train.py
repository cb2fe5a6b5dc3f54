"""Train and evaluate; the arguments are those of Detectron2's train_net.py.

    ./run train_net.py --config-file configs/quickstart/shapes.yaml
    ./run train_net.py --config-file FILE --resume
    ./run train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model.pth
    ./run train_net.py --config-file FILE --register mine=train.json:images \\
        DATASETS.TRAIN "('mine',)" …

Several processes: --num-gpus 2 (on CPU, too), or torchrun --nproc-per-node 2 train_net.py …
"""

import argparse
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..engine import (
    SafeCheckpointer,
    Trainer,
    as_in_main_process,
    exit_status_of,
    launch_training,
    only_training_in,
    prepare_process,
    setup_config,
    training_errors,
    user_errors,
)
from ..figures.training import write_training_report
from . import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="a yaml, or the folder of a finished training")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add("--num-gpus", type=int, default=1, help="processes on this machine (%(default)s)")
    add("--num-machines", type=int, default=1, help="(%(default)s)")
    add("--machine-rank", type=int, default=0, help="of this machine (%(default)s)")
    dist_url = default_argument_parser().get_default("dist_url")
    add("--dist-url", default=dist_url, help="where several processes meet (%(default)s)")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    cfg = setup_config(
        args.config_file,
        args.opts,
        register=args.register,
        imports=args.imports,
        resume=args.resume,
        eval_only=args.eval_only,
        num_processes=max(1, args.num_gpus) * args.num_machines,
    )
    return launch_training(main, args, cfg)


def main(args: argparse.Namespace, cfg: CfgNode) -> int:
    prepare_process(args.imports, args.register)  # one that was just started has empty registries
    cfg = as_in_main_process(cfg)
    if args.eval_only:
        return evaluate(args, cfg)
    with only_training_in(cfg.OUTPUT_DIR):
        return train(args, cfg)


def set_up(args: argparse.Namespace, cfg: CfgNode) -> None:
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="focal_retina")


def evaluate(args: argparse.Namespace, cfg: CfgNode) -> int:
    set_up(args, cfg)
    with user_errors():
        model = Trainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    with training_errors():
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
    return 0


def train(args: argparse.Namespace, cfg: CfgNode) -> int:
    set_up(args, cfg)
    with user_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([hooks.CallbackHook(after_train=report_if_finished)])
    with training_errors():
        trainer.train()
    if trainer.interrupted_by is not None and comm.is_main_process():
        print("train_net.py: saved; the same command with --resume goes on", file=sys.stderr)
    return exit_status_of(trainer.interrupted_by)


def report_if_finished(trainer: Trainer) -> None:
    if trainer.iter >= trainer.max_iter:
        write_training_report(trainer.cfg)
