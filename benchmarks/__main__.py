"""Measure ours beside its peers, and print the tables.

./run -m benchmarks train
./run -m benchmarks inference --size 1 800 1344 80 --runs 5
./run -m benchmarks labeling --scaling
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

import torch

from . import evaluation, labeling, loader, loss, models
from .inputs import Size
from .timing import machine, markdown, measure

_BATCHES = ((2, 800, 1344, 80), (1, 480, 640, 80), (2, 800, 1344, 1), (1, 480, 640, 1203))
_SIDES = ((200, 336), (400, 672), (800, 1344), (1600, 2688))
# What is measured, which yields the candidates at each size; and the sizes.
SUBJECTS: dict[str, tuple[Callable, list[Any]]] = {
    "train": (models.train, [Size(2, 480, 640, 80)]),
    "inference": (models.inference, [Size(1, 480, 640, 80)]),
    "formats": (models.formats, [Size(4, 288, 384, 6), Size(2, 480, 640, 80)]),
    "loader": (loader.cases, [Size(16, 480, 640, 80)]),
    "loss": (loss.cases, [*starmap(Size, _BATCHES)]),
    "labeling": (labeling.cases, [labeling.Size(n) for n in (0, 8, 100, 1000)]),
    "evaluation": (evaluation.cases, [evaluation.Size(n, 100, 80) for n in (1000, 5000)]),
}
# The sizes of --scaling: one quantity alone, then another.
SCALING: dict[str, list[Any]] = {
    "loss": [
        *(Size(n, 800, 1344, 80) for n in (1, 2, 4)),
        *(Size(1, *hw, 80) for hw in _SIDES),
        *(Size(1, 400, 672, k) for k in (1, 20, 80, 365, 1203)),
    ],
    "labeling": [
        *map(labeling.Size, (0, 8, 30, 100, 300, 1000, 3000)),
        *(labeling.Size(100, *hw) for hw in _SIDES),
    ],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each candidate")
    parser.add_argument("--size", type=int, nargs="+", help="such as IMAGES HEIGHT WIDTH CLASSES")
    parser.add_argument("--scaling", action="store_true", help="ours alone, as the input grows")
    args = parser.parse_args(argv)
    cases, sizes = SUBJECTS[args.subject]
    if args.size:
        fields = type(sizes[0])._fields
        if len(args.size) != len(fields):
            parser.error(f"--size of {args.subject}: {' '.join(fields).upper()}")
        sizes = [type(sizes[0])(*args.size)]
    elif args.scaling:
        if args.subject not in SCALING:
            parser.error(f"--scaling is for {' and '.join(SCALING)}")
        sizes = SCALING[args.subject]
    device = torch.device(args.device)
    print(machine(device), flush=True)
    for title, candidates in cases(device, sizes):
        if args.scaling:
            ours = ("ours", "copy")
            candidates = {name: x for name, x in candidates.items() if name.startswith(ours)}
        print(f"\n{markdown(measure(title, candidates, device, args.runs))}", flush=True)


if __name__ == "__main__":
    main()
