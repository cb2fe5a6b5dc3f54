"""Train every row of a table with several seeds, and report it beside the paper's numbers.

    ./run tools/sweep.py configs/sweeps/table1b_gamma.yaml \\
        --config-file configs/quickstart/shapes_R18.yaml --seeds 3 SOLVER.MAX_ITER 500

The same command again goes on where it stopped. Exit status 1: a trial failed.
"""

import argparse
import sys
from pathlib import Path

from focal_retina import sweep as sweeps
from focal_retina.engine import add_data_arguments, exit_status, setup_config, user_errors

ROOT = Path(__file__).parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep_file", type=Path)
    parser.add_argument("--config-file", required=True, help="decides model and data of every row")
    parser.add_argument("--seeds", type=int, default=3, help="trials of each row")
    parser.add_argument("--output", type=Path, default=Path("output/sweeps"))
    parser.add_argument("--address", help="of a Ray cluster; without it, Ray on this machine")
    parser.add_argument("--cpus-per-trial", type=int, default=1)
    parser.add_argument("--gpus-per-trial", type=float, default=sweeps.default_gpus())
    parser.add_argument("--retries", type=int, default=1, help="of a failed trial")
    parser.add_argument("--train-script", type=Path, default=ROOT / "train_net.py")
    parser.add_argument(
        "--loss-cdfs",
        action="store_const",
        const=ROOT / "tools" / "analyze_loss.py",
        help="also measure where the loss of each row's trained model is",
    )
    add_data_arguments(parser)
    parser.add_argument("opts", nargs="*", help="config keys and their values")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_args()
    with user_errors():
        sweep = sweeps.read_sweep(args.sweep_file)
        args.opts = [*sweeps.flatten_overrides(sweep.overrides), *args.opts]
        cfg = setup_config(
            args.config_file, args.opts, register=args.register, imports=args.imports
        )
        runner = sweeps.TrialRunner(
            root=args.output,
            train_script=args.train_script,
            inputs=sweeps.CodeInputs(tuple(args.register), tuple(args.imports)),
            cpus_per_trial=args.cpus_per_trial,
            gpus_per_trial=args.gpus_per_trial,
            retries=args.retries,
            git_commit=sweeps.git_commit(ROOT),
        )
        with sweeps.connect(args.address):
            results = sweeps.run_sweep(
                sweep,
                cfg,
                runner,
                range(1, args.seeds + 1),
                command=["./run", *sys.argv],
                base_config=args.config_file,
                loss_script=args.loss_cdfs,
            )
    print(f"report: {args.output / sweep.name / 'report.html'}")
    return int(any(x.status == "failed" for x in results))


if __name__ == "__main__":
    sys.exit(exit_status(main, "interrupted; the same command goes on from here"))
