"""Train and evaluate, with Detectron2's command line.

    ./run train_net.py --config-file configs/quickstart/shapes_R18.yaml
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

from focal_retina.analysis.report import write_training_report
from focal_retina.data.corrupt import CorruptImageError
from focal_retina.engine import (
    SafeCheckpointer,
    Trainer,
    UserError,
    add_data_arguments,
    exit_status,
    exit_status_of,
    launch_training,
    prepare_process,
    setup_config,
    user_errors,
)


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    add_data_arguments(parser)
    return parser.parse_args()


def main(args: argparse.Namespace, cfg: CfgNode) -> int:
    prepare_process(args.imports, args.register)  # one that was just started has empty registries
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="focal_retina")

    if args.eval_only:
        with user_errors():
            model = Trainer.build_model(cfg)
            checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        return 0

    with user_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([hooks.CallbackHook(after_train=report_if_finished)])
    try:
        trainer.train()
    except (FloatingPointError, CorruptImageError) as error:
        # Of a data worker's error the last line is the message, the others are a traceback.
        raise UserError(str(error).splitlines()[-1]) from error
    if trainer.interrupted_by is not None and comm.is_main_process():
        print("train_net.py: saved; the same command with --resume goes on", file=sys.stderr)
    return exit_status_of(trainer.interrupted_by)


def report_if_finished(trainer: Trainer) -> None:
    if trainer.iter >= trainer.max_iter:
        write_training_report(trainer.cfg)


def start(args: argparse.Namespace) -> int:
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


def run() -> int:
    interrupted = "interrupted; --resume goes on from the last checkpoint"
    return exit_status(lambda: start(parse_args()), interrupted)


if __name__ == "__main__":
    sys.exit(run())
