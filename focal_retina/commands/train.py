"""Train and evaluate; the arguments are those of Detectron2's train_net.py.

    ./run train_net.py --config-file configs/quickstart/shapes.yaml
    ./run train_net.py --config-file FILE --resume
    ./run train_net.py --config-file output/quickstart/shapes --eval-only
    ./run train_net.py --config-file FILE --register mine=train.json:images \\
        DATASETS.TRAIN "('mine',)" …

Several processes: --num-gpus 2 (on a CPU with MODEL.DEVICE cpu), or torchrun --nproc-per-node 2
train_net.py …

The short way prints the train_net.py command that it stands for:
    focal-retina train --data data.yaml
    focal-retina train --data train.json:images --val val.json:images KEY VALUE …
"""

import argparse
import hashlib
import itertools
import logging
import os
import shlex
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from . import add_config_arguments, data_of

_logger = logging.getLogger(__name__)

_RECIPE = "finetune/efficientnet_lite0.yaml"  # what --data trains
_VAL_SPLITS = ("val", "valid", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="a yaml, or the folder of a training")
    what = "a data set as --register takes it, but for NAME=, in the place of a config"
    add("--data", metavar="TRAIN", help=what)
    what = "evaluate --data on it; default: the val split of TRAIN, or a fifth of its images"
    add("--val", metavar="VAL", help=what)
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add("--verbose", action="store_true", help="print all that log.txt gets")
    add("--num-gpus", type=int, default=1, help="processes on this machine")
    add("--num-machines", type=int, default=1, help="that train together")
    add("--machine-rank", type=int, default=0, help="of this machine")
    add("--dist-url", default="auto", help="where the processes of several machines meet")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from .. import engine

    first_rank = args.machine_rank * args.num_gpus
    log = {"rank": int(os.environ.get("RANK", first_rank)), "verbose": args.verbose}
    engine.set_up_logging(**log)
    if args.data or args.val:
        args.config_file, args.register, args.opts = expand_data(args)
    how = {**data_of(args), "trained": args.eval_only, "num_processes": args.num_gpus}
    cfg = engine.load_config(args.config_file, args.opts, resume=args.resume, **how)
    engine.check_output_dir(cfg.OUTPUT_DIR)
    is_first = not (args.eval_only or args.machine_rank)
    with engine.only_training_in(cfg.OUTPUT_DIR) if is_first else nullcontext():
        engine.set_up_logging(cfg.OUTPUT_DIR, **log)
        num_processes = max(1, args.num_gpus * args.num_machines)
        how = {"eval_only": args.eval_only, "num_processes": num_processes}
        engine.check_config(cfg, resume=args.resume, **how)
        cfg = cfg if args.eval_only else engine.resolve_class_alpha(cfg)
    machines = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    return engine.launch_training(partial(main, args), cfg, *machines)


def expand_data(args: argparse.Namespace) -> tuple[str, list[str], list[str]]:
    """The config, registrations and options that ``--data`` stands for; prints them."""
    from detectron2.data import MetadataCatalog

    from .. import engine
    from ..config_file import get_config_file
    from ..data import limit_pixels

    with engine.user_errors():
        if args.config_file or not args.data:
            raise ValueError("--data (and --val) is in place of --config-file: name one of them")
        given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
        if limit := given.get("INPUT.MAX_IMAGE_PIXELS"):
            limit_pixels(int(limit))
        folder = given.get("OUTPUT_DIR", "output/photos")
        register, train, val = register_data(args.data, args.val, Path(folder, "splits"))
        defaults = {
            "MODEL.RETINANET.NUM_CLASSES": str(len(MetadataCatalog.get(train).thing_classes)),
            "DATASETS.TRAIN": f'("{train}",)',
            "DATASETS.TEST": f'("{val}",)',
            "OUTPUT_DIR": folder,
        }
        config_file = os.path.relpath(get_config_file(_RECIPE))
    register += args.register
    opts = [x for key, value in defaults.items() if key not in given for x in (key, value)]
    opts += args.opts
    specs = [x for spec in register for x in ("--register", spec)]
    print(shlex.join(["train_net.py", "--config-file", config_file, *specs, *opts]), flush=True)
    return config_file, register, opts


def register_data(data: str, val: str | None, splits: Path) -> tuple[list[str], str, str]:
    """What ``--register`` takes, and the names of the sets to train on and to evaluate on. The
    latter is the val split of ``data`` where ``val`` is None, or a fifth of its images; that split
    is written to ``splits``, and taken from there the next time."""
    from detectron2.data import MetadataCatalog

    from ..data import register_from_spec
    from ..dataset_check.split import split_dataset
    from ..files import write_once

    specs = [f"data={data}", *([f"val={val}"] if val else [])]
    names, *of_val = map(register_from_spec, specs)
    train = "data" if names == ["data"] else "data_train"
    if train not in names:
        raise ValueError(f"{data} has no train split, it has {', '.join(names)}: use --register")
    candidates = of_val[0] if val else names
    found = [x for x in candidates if x.rpartition("_")[2] in _VAL_SPLITS]
    if found or val:
        return specs, train, (found or candidates)[0]
    metadata = MetadataCatalog.get(train)
    image_root, content = metadata.image_root, Path(metadata.json_file).read_bytes()
    splits = splits / hashlib.sha256(content).hexdigest()[:8]  # other data have another split
    write_once(splits, partial(split_dataset, train, fractions={"train": 0.8, "val": 0.2}))
    specs = [f"{x}={splits / x}.json:{image_root}" for x in ("train", "val")]
    (train,), (val,) = map(register_from_spec, specs)
    return specs, train, val


def main(args: argparse.Namespace, cfg: Any) -> int:
    """What each process of the training does; returns its exit status."""
    import torch
    from detectron2.utils import collect_env, comm
    from detectron2.utils.env import seed_all_rng

    from .. import engine

    # A process that was just started has empty registries, and another machine another processor.
    engine.prepare_process(**data_of(args))
    cfg = comm.all_gather(cfg)[0]
    with nullcontext() if args.eval_only else engine.only_training_in(cfg.OUTPUT_DIR):
        # In the place of Detectron2's default_setup
        rank, libraries = comm.get_rank(), collect_env.collect_env_info()
        engine.set_up_logging(cfg.OUTPUT_DIR, rank=rank, verbose=args.verbose)
        _logger.debug(f"{args}\nprocess {rank} of {comm.get_world_size()}\n{libraries}\n{cfg}")
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
        return evaluate(args, cfg) if args.eval_only else train(args, cfg)


def evaluate(args: argparse.Namespace, cfg: Any) -> int:
    from detectron2.utils import comm

    from .. import engine
    from ..figures.evaluation import draw_evaluation

    with engine.user_errors():
        model = engine.load_trained_model(cfg)
    with engine.training_errors():
        results = engine.Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results |= engine.Trainer.test_with_TTA(cfg, model)
    if comm.is_main_process():
        folders = ["inference", *["TTA/inference"] * cfg.TEST.AUG.ENABLED]
        for folder, name in itertools.product(folders, cfg.DATASETS.TEST):
            draw_evaluation(Path(cfg.OUTPUT_DIR, folder, name))
        _logger.info(f"detections, numbers by class, pictures: {Path(cfg.OUTPUT_DIR, 'inference')}")
        engine.Trainer.verify(cfg, results)
    return 0


def train(args: argparse.Namespace, cfg: Any) -> int:
    from detectron2.engine import hooks
    from detectron2.utils import comm

    from .. import engine
    from ..data.classes import save_classes
    from ..files import atomic_write

    with engine.user_errors():
        for name in cfg.DATASETS.TEST:  # a set without an evaluator is told now, not at the end
            with suppress(NotImplementedError):
                engine.Trainer.build_evaluator(cfg, name)
        trainer = engine.Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():  # not before, as a refused command leaves the folder as it was
        with atomic_write(Path(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(cfg.dump())
        save_classes(cfg, Path(cfg.OUTPUT_DIR))
        trainer.register_hooks([hooks.CallbackHook(after_train=report_if_finished)])
    _logger.info(f"everything else is in {Path(cfg.OUTPUT_DIR, 'log.txt')}")
    with engine.training_errors():
        trainer.train()
    if trainer.interrupted_by is not None:
        _logger.info("saved; the same command with --resume goes on")
    return engine.exit_status_of(trainer.interrupted_by)


def report_if_finished(trainer: Any) -> None:
    from ..figures.training import write_training_report

    if trainer.iter >= trainer.max_iter:
        write_training_report(trainer.cfg)
