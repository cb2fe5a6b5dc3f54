"""Stands in for tools/analyze_loss.py: its command line and its numbers, or a failure.

The trial's MODEL.WEIGHTS, which is no checkpoint here, says with "fail" that there is to be one.
"""

import argparse
import json
from pathlib import Path

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("--config-file", type=Path)
parser.add_argument("--register", action="append", default=[])
parser.add_argument("--output", type=Path)
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args()
config = yaml.safe_load(args.config_file.read_text())

calls = args.output / "calls.json"
previous = json.loads(calls.read_text()) if calls.is_file() else []
calls.write_text(json.dumps([*previous, args.opts]))
if config["MODEL"]["WEIGHTS"] == "fail":
    raise SystemExit("no such weights")
curve = {"samples": [0.0, 0.75, 1.0], "loss": [0.0, 0.25, 1.0], "error": 0.0}
content = {
    "images": 3,
    "samples": {"positives": 4, "negatives": 400},
    "cdf": {"positives": {"0": curve, "2": None}, "negatives": {"0": curve, "2": curve}},
}
(args.output / "loss_distribution.json").write_text(json.dumps(content))
