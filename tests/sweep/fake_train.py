"""Stands in for the training and for the measuring of its loss: their command lines, their files,
and failures on demand.

The name of MODEL.WEIGHTS' file says what happens from the middle of the training on: "" nothing,
"fail" in every attempt, "fail once" and "kill once" in the first only. "wait" goes on once a file
named "go" is there. "fail with workers" and "kill with workers" have data workers then. "slow"
takes its time for each iteration.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("--config-file", type=Path)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--register", action="append", default=[])
parser.add_argument("--output", type=Path)  # of the loss
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args()
config = yaml.safe_load(args.config_file.read_text())
opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
output = args.output or Path(opts["OUTPUT_DIR"])
behaviour, max_iter = Path(config["MODEL"]["WEIGHTS"]).name, config["SOLVER"]["MAX_ITER"]


def measure_loss():
    with open(output / "calls.txt", "a") as file:
        file.write(opts["MODEL.WEIGHTS"] + "\n")
    if behaviour == "fail":
        sys.exit("no such weights")
    content = {"images": 3, "samples": {}, "cdf": {"positives": {}, "negatives": {}}}
    (output / "loss_distribution.json").write_text(json.dumps(content))


def start_data_workers():
    """Two of the package's own, which are waiting for work."""
    from torch.utils.data import DataLoader

    from focal_retina.data.loader import prepare_data_worker

    loader = iter(DataLoader(range(100), num_workers=2, worker_init_fn=prepare_data_worker))
    next(loader)
    pids = [worker.pid for worker in loader._workers]
    (output / "workers.json").write_text(json.dumps(pids))
    return loader


def train():
    starts = output / "starts.json"
    previous = json.loads(starts.read_text()) if starts.is_file() else []
    metrics = output / "metrics.json"  # the checkpoint, too: its lines say how far it is
    first = len(metrics.read_text().splitlines()) if args.resume and metrics.is_file() else 0
    facts = {"first": first, "raylet": os.environ.get("RAY_RAYLET_PID"), "pid": os.getpid()}
    starts.write_text(json.dumps([*previous, facts]))

    for iteration in range(first + 1, max_iter + 1):
        row = {"iteration": iteration, "total_loss": 1 / iteration}
        if iteration == max_iter:
            row.update({"bbox/AP": 10.0 * config["SEED"], "bbox/AP50": float("nan")})
        with open(metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        (output / "model_0000001.pth").touch()
        time.sleep(0.2 * (behaviour == "slow"))
        if iteration < max_iter // 2:
            continue
        workers = start_data_workers() if behaviour.endswith("with workers") else None
        if behaviour == "fail with workers":
            raise RuntimeError(f"an error with {workers}")
        if behaviour == "fail" or (behaviour == "fail once" and not previous):
            print("the reason\nof the failure")
            sys.exit(3)
        if behaviour == "kill with workers" or (behaviour == "kill once" and not previous):
            os.kill(os.getpid(), signal.SIGKILL)
        while behaviour == "wait" and not (output / "go").exists():
            time.sleep(0.05)


measure_loss() if args.output else train()
