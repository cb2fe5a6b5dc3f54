"""Train and evaluate; the arguments are those of Detectron2's train_net.py.

    ./run train_net.py --config-file configs/quickstart/shapes.yaml
    ./run train_net.py --config-file FILE --resume
    ./run train_net.py --config-file output/quickstart/shapes --eval-only
    ./run train_net.py --config-file FILE --register mine=train.json:images \\
        DATASETS.TRAIN "('mine',)" …

Several processes: --num-gpus 2 (on a CPU with MODEL.DEVICE cpu), or torchrun --nproc-per-node 2
train_net.py …
"""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from . import add_config_arguments

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="a yaml, or the folder of a training")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add("--verbose", action="store_true", help="print all that log.txt gets")
    add("--num-gpus", type=int, default=1, help="processes on this machine")
    add("--num-machines", type=int, default=1, help="that train together")
    add("--machine-rank", type=int, default=0, help="of this machine")
    add("--dist-url", default="auto", help="where the processes of several machines meet")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import check_config, check_output_dir, launch_training, load_config
    from ..engine.console import set_up_logging

    log = {"rank": int(os.environ.get("RANK", 0)), "verbose": args.verbose}
    set_up_logging(**log)
    of_torchrun = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    num_processes = max(args.num_gpus * args.num_machines, of_torchrun)
    cfg = load_config(
        args.config_file,
        args.opts,
        register=args.register,
        imports=args.imports,
        resume=args.resume,
        trained=args.eval_only,
        num_processes=num_processes,
    )
    check_output_dir(cfg.OUTPUT_DIR)
    set_up_logging(cfg.OUTPUT_DIR, **log)
    check_config(cfg, resume=args.resume, eval_only=args.eval_only, num_processes=num_processes)
    return launch_training(
        partial(main, args),
        cfg,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def main(args: argparse.Namespace, cfg: Any) -> int:
    """What each process of the training does; returns its exit status."""
    from ..engine import as_in_main_process, only_training_in, prepare_process

    prepare_process(args.imports, args.register)  # one that was just started has empty registries
    cfg = as_in_main_process(cfg)
    if args.eval_only:
        return evaluate(args, cfg)
    with only_training_in(cfg.OUTPUT_DIR):
        return train(args, cfg)


def set_up(args: argparse.Namespace, cfg: Any) -> None:
    """Log, seed and config.yaml of a process, in the place of Detectron2's ``default_setup``."""
    import torch
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng

    from ..engine.console import set_up_logging
    from ..files import atomic_write

    rank = comm.get_rank()
    set_up_logging(cfg.OUTPUT_DIR, rank=rank, verbose=args.verbose)
    _logger.debug("%s\nprocess %d of %d\n%s", args, rank, comm.get_world_size(), collect_env_info())
    _logger.debug("config:\n%s", cfg.dump())
    if rank == 0 and not args.eval_only:
        with atomic_write(Path(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only


def evaluate(args: argparse.Namespace, cfg: Any) -> int:
    from ..engine import Trainer, training_errors, user_errors
    from ..engine.checkpoint import load_trained_model

    set_up(args, cfg)
    with user_errors():
        model = load_trained_model(cfg, resume=args.resume)
    with training_errors():
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
    _logger.info("detections and precision–recall: %s", Path(cfg.OUTPUT_DIR, "inference"))
    return 0


def train(args: argparse.Namespace, cfg: Any) -> int:
    from detectron2.engine import hooks
    from detectron2.utils import comm

    from ..data.classes import save_classes
    from ..engine import Trainer, exit_status_of, training_errors, user_errors

    set_up(args, cfg)
    _logger.info(
        "%s, %d iterations of %d images on %s, trained on %s, evaluated on %s",
        cfg.MODEL.META_ARCHITECTURE,
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.MODEL.DEVICE,
        ", ".join(cfg.DATASETS.TRAIN),
        ", ".join(cfg.DATASETS.TEST) or "nothing",
    )
    with user_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if trainer.start_iter:
        _logger.info("goes on at iteration %d, from %s", trainer.start_iter, cfg.OUTPUT_DIR)
    elif cfg.MODEL.WEIGHTS:
        _logger.info("weights: %s", cfg.MODEL.WEIGHTS)
    if comm.is_main_process():
        save_classes(cfg, Path(cfg.OUTPUT_DIR))
        trainer.register_hooks([hooks.CallbackHook(after_train=report_if_finished)])
    _logger.info("everything else is in %s", Path(cfg.OUTPUT_DIR, "log.txt"))
    with training_errors():
        trainer.train()
    if trainer.interrupted_by is not None and comm.is_main_process():
        print("train_net.py: saved; the same command with --resume goes on", file=sys.stderr)
    return exit_status_of(trainer.interrupted_by)


def report_if_finished(trainer: Any) -> None:
    from ..figures.training import write_training_report

    if trainer.iter >= trainer.max_iter:
        write_training_report(trainer.cfg)
