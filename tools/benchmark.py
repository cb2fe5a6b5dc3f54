"""Measure ours beside its peers, and print the tables.

python tools/benchmark.py train
python tools/benchmark.py inference --size 1 800 1344 80 --runs 5
python tools/benchmark.py labeling --scaling --json labeling.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from focal_retina.benchmark import end2end, evaluation, inference, labeling, loader, loss, train
from focal_retina.benchmark.timing import machine, markdown, measure, write_json

SUBJECTS = {m.__name__.rpartition(".")[2]: m for m in (train, inference, end2end, loader)}
SCALABLE = {"loss": loss, "labeling": labeling, "evaluation": evaluation}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=[*SUBJECTS, *SCALABLE])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each candidate")
    shape = ("IMAGES", "HEIGHT", "WIDTH", "CLASSES")
    parser.add_argument("--size", type=int, nargs=4, metavar=shape, help="of a detector")
    parser.add_argument(
        "--scaling", action="store_true", help="ours alone, as the input grows (the other subjects)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    args = parser.parse_args(argv)
    if args.runs < 1 or min(args.size or [1]) < 1:
        parser.error("--runs and --size: at least 1")
    if (args.size and args.subject in SCALABLE) or (args.scaling and args.subject in SUBJECTS):
        parser.error(f"{args.subject} has no {'--size' if args.size else '--scaling'}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    subject, device = (SUBJECTS | SCALABLE)[args.subject], torch.device(args.device)
    description = machine(device)
    print(", ".join(f"{name}: {value}" for name, value in description.items()), flush=True)
    make_cases = subject.scaling_cases if args.scaling else subject.comparison_cases
    rows = []
    cases = make_cases(device, *([loss.Size(*args.size)] if args.size else []))
    for case_rows in measure(cases, device, args.runs):
        print(f"\n{markdown(case_rows)}", flush=True)
        rows += case_rows
    if args.json:
        write_json(args.json, description, rows)


if __name__ == "__main__":
    main()
