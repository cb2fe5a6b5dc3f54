"""Measure ours beside its peers, and print the tables.

./run -m benchmarks train
./run -m benchmarks inference --size 1 800 1344 80 --runs 5
./run -m benchmarks labeling --scaling --json labeling.json
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .timing import machine, markdown, measure

SUBJECTS = ["train", "inference", "formats", "loader", "loss", "labeling", "evaluation"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each candidate")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="N", help="such as IMAGES HEIGHT WIDTH CLASSES"
    )
    parser.add_argument("--scaling", action="store_true", help="ours alone, as the input grows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    args = parser.parse_args(argv)
    subject = importlib.import_module(f".{args.subject}", __package__)
    sizes = getattr(subject, "SCALING", ()) if args.scaling else subject.SIZES
    if args.runs < 1 or min(args.size or [1]) < 1:
        parser.error("--runs and --size: at least 1")
    if not sizes:
        parser.error(f"{args.subject} has no --scaling")
    if args.size:
        size_type = type(sizes[0])
        if len(args.size) != len(size_type._fields):
            parser.error(f"--size of {args.subject}: {' '.join(size_type._fields).upper()}")
        sizes = [size_type(*args.size)]
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")

    device = torch.device(args.device)
    description = machine(device)
    print(", ".join(f"{name}: {value}" for name, value in description.items()), flush=True)
    rows = []
    for title, candidates in subject.cases(device, sizes):
        if args.scaling:
            ours = ("ours", "copy")
            candidates = {name: x for name, x in candidates.items() if name.startswith(ours)}
        case_rows = measure(title, candidates, device, args.runs)
        print(f"\n{markdown(case_rows)}", flush=True)
        rows += case_rows
    if args.json:
        contents = {"machine": description, "rows": [row._asdict() for row in rows]}
        args.json.write_text(json.dumps(contents, indent=2) + "\n")


if __name__ == "__main__":
    main()
