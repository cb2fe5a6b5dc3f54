"""Measuring AP and inference time of trained models at several image sizes."""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils.file_io import PathManager
from torch import nn

from ..engine import Trainer, UserError, setup_config, user_errors
from ..engine.trained_model import load_trained_model
from ..files import atomic_write
from .speed_accuracy import PAPER_OTHERS, PAPER_RETINANET, Measurement

_WARM_UP = 5


@dataclass(frozen=True)
class Run:
    """A trained model: its name in the figure, its config file and its weights."""

    name: str
    config_file: str
    weights: str


def parse_run(spec: str) -> Run:
    """Read ``NAME=CONFIG:WEIGHTS``, or ``NAME=DIRECTORY`` for what train_net.py leaves.

    Raises:
        ValueError: it is neither; or the directory lacks config.yaml or model_final.pth.
    """
    name, _, value = spec.partition("=")
    if os.path.isdir(value):
        run = Run(name, *(os.path.join(value, x) for x in ("config.yaml", "model_final.pth")))
        for path in (run.config_file, run.weights):
            if not os.path.isfile(path):
                raise ValueError(f"--run {spec}: there is no file {path}")
        return run
    config_file, _, weights = value.partition(":")
    if not (name and config_file and weights):
        raise ValueError(f"--run {spec}: expected NAME=CONFIG:WEIGHTS or NAME=DIRECTORY")
    return Run(name, config_file, weights)


def measure_runs(
    args: argparse.Namespace, runs: Sequence[Run], sizes: Sequence[int], output: Path
) -> list[Measurement]:
    """Measure each run at each size, but not what ``output``/speed_accuracy.json has already.

    That file is written after each measurement, so that an interrupted call goes on where it was.

    Args:
        args: as for :func:`~focal_retina.engine.setup_config`, their config file apart; ``images``,
            how many to time.
        runs, sizes: all pairs are measured.
        output: an existing folder, for the json and the evaluators' files.

    Returns:
        All measurements in the json, those of earlier calls among them.

    Raises:
        UserError: bad configs, two runs of one name, a data set without objects.
    """
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two runs have the same name")
    path = output / "speed_accuracy.json"
    with user_errors():
        results = {(x.run, x.size): x for x in read_measurements(path)}
    # Every config is read before the first measurement, so that a mistake shows at once.
    configs = {run: _read_config(args, run, output) for run in runs}
    for run, size in itertools.product(runs, sizes):
        cfg = _at_size(configs[run], size)
        found = results.get((run.name, size))
        if found is not None and found.config_hash == config_hash(cfg, args.images):
            print(f"{run.name} at {size}: measured before")
            continue
        measurement = _measure(cfg, run.name, size, args.images)
        print(
            f"{run.name} at {size}: {measurement.milliseconds:.1f} ms, "
            f"AP {measurement.metrics['AP']:.1f}",
            flush=True,
        )
        results[run.name, size] = measurement
        write_measurements(path, results.values())
    return list(results.values())


def _read_config(args: argparse.Namespace, run: Run, output: Path) -> CfgNode:
    opts = [*args.opts, "MODEL.WEIGHTS", run.weights, "OUTPUT_DIR", str(output / run.name)]
    cfg = setup_config(
        run.config_file, opts, register=args.register, imports=args.imports, eval_only=True
    )
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"{run.config_file}: DATASETS.TEST {cfg.DATASETS.TEST} must name one set")
    return cfg


def _at_size(cfg: CfgNode, size: int) -> CfgNode:
    """The config at another test size, with the same limit to the images' aspect ratio."""
    cfg = cfg.clone()
    cfg.defrost()
    aspect = cfg.INPUT.MAX_SIZE_TEST / cfg.INPUT.MIN_SIZE_TEST
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size, round(size * aspect)
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, str(size))
    cfg.freeze()
    return cfg


def config_hash(cfg: CfgNode, timed_images: int) -> str:
    """Hash of config, weights file (its size and time of change), device and images to time."""
    weights = os.stat(PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0]))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    decisive = [cfg.dump(), weights.st_size, weights.st_mtime_ns, _device_name(cfg), timed_images]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def _measure(cfg: CfgNode, name: str, size: int, timed_images: int) -> Measurement:
    with user_errors():
        model = load_trained_model(cfg)
    (dataset,) = cfg.DATASETS.TEST
    loader = Trainer.build_test_loader(cfg, dataset)
    batches = list(itertools.islice(loader, timed_images))
    milliseconds = _median_milliseconds(model, batches, torch.device(cfg.MODEL.DEVICE))
    metrics = Trainer.test(cfg, model)["bbox"]
    if not math.isfinite(metrics["AP"]):
        raise UserError(f"{dataset} has no object to be found, and so no AP")
    return Measurement(
        run=name,
        size=size,
        milliseconds=milliseconds,
        timed_images=len(batches),
        metrics={key: float(x) for key, x in metrics.items() if math.isfinite(x)},
        dataset=dataset,
        device=_device_name(cfg),
        config_hash=config_hash(cfg, timed_images),
    )


def _median_milliseconds(
    model: nn.Module, batches: Sequence[list[dict]], device: torch.device
) -> float:
    times = []
    with inference_context(model), torch.no_grad():
        for batch in [*batches[:_WARM_UP], *batches]:
            start = time.perf_counter()
            model(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[-len(batches) :])


def _device_name(cfg: CfgNode) -> str:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(cfg.MODEL.DEVICE))
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def read_measurements(path: Path) -> list[Measurement]:
    """What :func:`write_measurements` wrote; nothing if the file does not exist.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        return [Measurement(**x) for x in json.loads(path.read_text())["measurements"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no measurements ({error}): move it away") from error


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write the measurements, and the paper's points, as json."""
    contents = {
        "measurements": [dataclasses.asdict(x) for x in measurements],
        "paper": {"retinanet": PAPER_RETINANET, "others": PAPER_OTHERS},
    }
    with atomic_write(path) as file:
        file.write(f"{json.dumps(contents, indent=1)}\n".encode())
