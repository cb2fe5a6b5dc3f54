"""Measure the classification loss or the anchor labeling beside its peers, and print the tables.

python tools/benchmark.py loss
python tools/benchmark.py labeling --scaling --json labeling.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from focal_retina.benchmark import labeling, loss
from focal_retina.benchmark.timing import machine, markdown, measure, write_json

SUBJECTS = {"loss": loss, "labeling": labeling}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each candidate")
    parser.add_argument(
        "--scaling", action="store_true", help="ours alone, as the input grows, without the peers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error("--runs: at least one")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    subject, device = SUBJECTS[args.subject], torch.device(args.device)
    description = machine(device)
    print(", ".join(f"{name}: {value}" for name, value in description.items()), flush=True)
    cases = subject.scaling_cases(device) if args.scaling else subject.comparison_cases(device)
    rows = []
    for case_rows in measure(cases, device, args.runs):
        print(f"\n{markdown(case_rows)}", flush=True)
        rows += case_rows
    if args.json:
        write_json(args.json, description, rows)


if __name__ == "__main__":
    main()
