"""Train every row of a table with several seeds, and report it beside the paper's numbers.

    focal-retina sweep configs/sweeps/table1b_gamma.yaml \\
        --config-file configs/quickstart/shapes.yaml --seeds 3 SOLVER.MAX_ITER 500

The same command again goes on where it stopped. Exit status 1: a trial failed.
"""

import argparse
import shlex
import sys
from itertools import chain
from pathlib import Path

from . import add_config_arguments, data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sweep_file", type=Path, help="rows of a table; docs/redo_the_paper.md has its keys")
    add("--config-file", required=True, metavar="FILE", help="model and data of every row")
    add("--row", action="append", default=[], metavar="NAME", help="only it; repeatable")
    add("--tune-on", action="append", default=[], metavar="NAME", help="data set of the tuning")
    add("--seeds", type=int, default=3, metavar="N", help="trials of each row")
    add("--output", type=Path, default=Path("output/sweeps"), metavar="DIR", help="trials, report")
    add("--address", help="of a Ray cluster; without it, Ray on this machine")
    add("--cpus-per-trial", type=int, default=1, metavar="N", help="cores, and threads")
    add("--gpus-per-trial", type=float, metavar="N", help="default: 1 where there is a GPU, else 0")
    add("--retries", type=int, default=1, metavar="N", help="of a failed trial")
    add("--train-script", type=Path, metavar="FILE", help="default: focal-retina train")
    add("--loss-cdfs", action="store_true", help="and each model's figure 4")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import setup_config, user_errors

    with user_errors():
        from ..sweep.grid import CodeInputs, read_sweep, select_rows
        from ..sweep.runner import TrialRunner, connect
        from ..sweep.sweep import git_commit, run_sweep

        sweep = read_sweep(args.sweep_file)
        if args.row:
            sweep = select_rows(sweep, args.row)
        opts = [*chain.from_iterable(sweep.overrides.items()), *args.opts]
        cfg = setup_config(args.config_file, opts, **data_of(args))
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        gpus = float(on_gpu) if args.gpus_per_trial is None else args.gpus_per_trial
        if gpus and not on_gpu:
            raise ValueError("--gpus-per-trial: MODEL.DEVICE is cpu here; start where a GPU is")
        script = [args.train_script.resolve()] if args.train_script else []
        runner = TrialRunner(
            root=args.output.resolve(),
            inputs=CodeInputs(tuple(args.register), tuple(args.imports), tuple(script)),
            train=script or TrialRunner.train,
            cpus_per_trial=args.cpus_per_trial,
            gpus_per_trial=gpus,
            retries=args.retries,
            git_commit=git_commit(Path(__file__).resolve().parents[2]),
        )
        command = shlex.join(["focal-retina", *sys.argv[1:]])
        about = {"base_config": args.config_file, "command": command}
        with connect(args.address):
            seeds = range(1, args.seeds + 1)
            results = run_sweep(sweep, cfg, runner, seeds, about, args.tune_on, args.loss_cdfs)
    print(f"report: {args.output / sweep.name / 'report.html'}")
    return int(any(x.status == "failed" for x in results))
