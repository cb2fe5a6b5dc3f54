"""Train every row of a table with several seeds, and report it beside the paper's numbers.

    focal-retina sweep configs/sweeps/table1b_gamma.yaml \\
        --config-file configs/quickstart/shapes.yaml --seeds 3 SOLVER.MAX_ITER 500

The same command again goes on where it stopped. Exit status 1: a trial failed.
"""

import argparse
import shlex
import sys
from pathlib import Path

from . import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    import torch

    parser.add_argument("sweep_file", type=Path)
    parser.add_argument("--config-file", required=True, help="decides model and data of every row")
    parser.add_argument("--seeds", type=int, default=3, help="trials of each row")
    parser.add_argument("--output", type=Path, default=Path("output/sweeps"))
    parser.add_argument("--address", help="of a Ray cluster; without it, Ray on this machine")
    parser.add_argument("--cpus-per-trial", type=int, default=1)
    parser.add_argument("--gpus-per-trial", type=float, default=float(torch.cuda.is_available()))
    parser.add_argument("--retries", type=int, default=1, help="of a failed trial")
    parser.add_argument("--train-script", type=Path, help="default: focal-retina train")
    parser.add_argument("--loss-cdfs", action="store_true", help="and each model's figure 4")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import setup_config, user_errors

    with user_errors():
        from ..sweep.grid import CodeInputs, flatten_overrides, read_sweep
        from ..sweep.runner import TrialRunner, connect
        from ..sweep.sweep import git_commit, run_sweep

        sweep = read_sweep(args.sweep_file)
        opts = [*flatten_overrides(sweep.overrides), *args.opts]
        cfg = setup_config(args.config_file, opts, register=args.register, imports=args.imports)
        runner = TrialRunner(
            root=args.output.resolve(),
            inputs=CodeInputs(tuple(args.register), tuple(args.imports)),
            train=[args.train_script.resolve()] if args.train_script else TrialRunner.train,
            cpus_per_trial=args.cpus_per_trial,
            gpus_per_trial=args.gpus_per_trial,
            retries=args.retries,
            git_commit=git_commit(Path(__file__).resolve().parents[2]),
        )
        command = shlex.join(["focal-retina", *sys.argv[1:]])
        about = {"base_config": args.config_file, "command": command}
        with connect(args.address):
            results = run_sweep(sweep, cfg, runner, range(1, args.seeds + 1), about, args.loss_cdfs)
    print(f"report: {args.output / sweep.name / 'report.html'}")
    return int(any(x.status == "failed" for x in results))
