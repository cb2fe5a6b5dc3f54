"""AP against inference time of trained models at several image sizes: the paper's figure 2."""

import itertools
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils.file_io import PathManager
from matplotlib.axes import Axes
from torch.utils import benchmark

from ..config_file import config_hash, with_values
from ..engine import Trainer, UserError, setup_config
from ..engine.checkpoint import load_trained_model
from ..engine.precision import build_inference_copy
from ..files import annotation_file, write_json
from . import SERIES_COLORS, new_figure, style_axes

# (ms an image on an M40, AP on COCO test-dev), from the paper's table 1e.
PAPER_SIZES = (400, 500, 600, 700, 800)
PAPER_RETINANET = {
    "RetinaNet-50": [(64, 30.5), (72, 32.5), (98, 34.3), (121, 35.1), (153, 35.7)],
    "RetinaNet-101": [(81, 31.9), (90, 34.4), (122, 36.0), (154, 37.1), (198, 37.8)],
}
PAPER_OTHERS = {
    "YOLOv2": (25, 21.6),
    "SSD321": (61, 28.0),
    "DSSD321": (85, 28.0),
    "R-FCN": (85, 29.9),
    "SSD513": (125, 31.2),
    "DSSD513": (156, 33.2),
    "FPN FRCN": (172, 36.2),
}
Run = tuple[str, str, str]  # its name, its config file or folder, its weights ("": the folder's)
_Point = tuple[float, float]


class Measurement(NamedTuple):
    """One run at one size."""

    run: str
    size: int  # the images' shorter side, pixels
    milliseconds: float  # median over the images, from the resized image to the final boxes
    timed_images: int
    metrics: dict[str, float]  # the evaluator's, percent, without those that are not defined
    dataset: str  # AP and time were measured on it
    device: str
    config_hash: str  # of all that decides the numbers: with the same they are not taken again


def parse_run(spec: str) -> Run:
    """Read ``NAME=CONFIG:WEIGHTS``, or ``NAME=FOLDER`` for what a training leaves."""
    name, _, value = spec.partition("=")
    if name and os.path.isdir(value):
        return name, value, ""
    config_file, _, weights = value.partition(":")
    if not (name and config_file and weights):
        raise ValueError(f"--run {spec}: expected NAME=CONFIG:WEIGHTS or NAME=FOLDER")
    return name, config_file, weights


def measure_runs(
    runs: Sequence[Run],
    sizes: Sequence[int],
    output: Path,
    *,
    num_images: int = 50,
    opts: Sequence[str] = (),
    **data: Any,
) -> list[Measurement]:
    """Measure each run at each size, but not what ``output``/speed_accuracy.json has already.

    That file is written after each measurement. All it holds is returned, earlier calls' too.
    ``num_images`` are timed; ``opts``, ``register`` and ``imports`` are load_config's. A UserError
    or ValueError says what is wrong: a config, a data set without objects, the json.
    """
    if len({name for name, _, _ in runs}) < len(runs):
        raise ValueError("two runs have the same name")
    path = output / "speed_accuracy.json"
    results = {(x.run, x.size): x for x in read_measurements(path)}
    # Every config is read before the first measurement, so that a mistake shows at once.
    configs = {}
    for name, source, weights in runs:
        words = [*opts, "OUTPUT_DIR", str(output / name)]
        words += ["MODEL.WEIGHTS", weights] if weights else []
        cfg = setup_config(source, words, eval_only=True, **data)
        if len(cfg.DATASETS.TEST) != 1:
            raise UserError(f"{source}: DATASETS.TEST {cfg.DATASETS.TEST} must name one set")
        if not cfg.INPUT.MIN_SIZE_TEST:
            raise UserError(f"{source}: INPUT.MIN_SIZE_TEST is 0; the ratio to MAX_SIZE_TEST stays")
        configs[name] = cfg
    for (name, base), size in itertools.product(configs.items(), sizes):
        cfg = _at_size(base, size)
        weights = PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0])
        files = filter(os.path.isfile, (weights, annotation_file(cfg.DATASETS.TEST[0])))
        state = [(x.st_size, x.st_mtime_ns) for x in map(os.stat, files)]
        digest = config_hash(cfg, *state, _device_name(cfg), num_images)[:16]
        if (name, size) in results and results[name, size].config_hash == digest:
            print(f"{name} at {size}: measured before")
            continue
        x = results[name, size] = _measure(cfg, name, size, num_images, digest)
        print(f"{name} at {size}: {x.milliseconds:.1f} ms, AP {x.metrics['AP']:.1f}", flush=True)
        paper = {"retinanet": PAPER_RETINANET, "others": PAPER_OTHERS}
        measured = [x._asdict() for x in results.values()]
        write_json(path, {"measurements": measured, "paper": paper})
    return list(results.values())


def _at_size(cfg: CfgNode, size: int) -> CfgNode:
    """The config at another test size, with the same limit to the images' aspect ratio."""
    aspect = cfg.INPUT.MAX_SIZE_TEST / cfg.INPUT.MIN_SIZE_TEST
    sizes = {"INPUT.MIN_SIZE_TEST": size, "INPUT.MAX_SIZE_TEST": round(size * aspect)}
    return with_values(cfg, {**sizes, "OUTPUT_DIR": os.path.join(cfg.OUTPUT_DIR, str(size))})


def _device_name(cfg: CfgNode) -> str:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name(cfg.MODEL.DEVICE)
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def _measure(cfg: CfgNode, name: str, size: int, num_images: int, digest: str) -> Measurement:
    model = load_trained_model(cfg)
    (dataset,) = cfg.DATASETS.TEST
    evaluated = build_inference_copy(cfg, model)
    times, num_threads = [], torch.get_num_threads()
    with inference_context(evaluated), torch.no_grad():
        for batch in itertools.islice(Trainer.build_test_loader(cfg, dataset), num_images):
            names = {"model": evaluated, "batch": batch}
            # It warms up with the batch, and waits for the GPU.
            timer = benchmark.Timer("model(batch)", globals=names, num_threads=num_threads)
            times.append(1e3 * timer.timeit(1).median)
    metrics = Trainer.test(cfg, model).get("bbox", {"AP": math.nan})
    if not math.isfinite(metrics["AP"]):
        raise UserError(f"{dataset} has no object to be found, and so no AP")
    finite = {key: float(x) for key, x in metrics.items() if math.isfinite(x)}
    median, device = statistics.median(times), _device_name(cfg)
    return Measurement(name, size, median, len(times), finite, dataset, device, digest)


def read_measurements(path: Path) -> list[Measurement]:
    """What :func:`measure_runs` wrote; nothing if the file does not exist."""
    if not path.exists():
        return []
    try:
        return [Measurement(**x) for x in json.loads(path.read_text())["measurements"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no measurements ({error}): move it away") from error


def upper_envelope(points: Iterable[_Point]) -> list[_Point]:
    """The points (time, AP) that no other one beats in both, by time; AP then rises too."""
    envelope: list[_Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not envelope or point[1] > envelope[-1][1]:
            envelope.append(point)
    return envelope


def draw_speed_accuracy(measurements: Sequence[Measurement], out_png: Path) -> None:
    """Draw the measured runs, at least one, and beside them the paper's points, which come from
    another GPU and perhaps from other data."""
    figure = new_figure(13, 5.5)
    measured, paper = figure.subplots(1, 2)
    curves: dict[str, dict[str, _Point]] = {}
    for x in sorted(measurements, key=lambda x: x.size):
        curves.setdefault(x.run, {})[str(x.size)] = (x.milliseconds, x.metrics["AP"])
    circumstances = dict.fromkeys(y for x in measurements for y in (x.dataset, x.device))
    _draw_curves(measured, f"measured: {', '.join(circumstances)}", curves)
    sizes = list(map(str, PAPER_SIZES))
    in_paper = {x: dict(zip(sizes, y, strict=True)) for x, y in PAPER_RETINANET.items()}
    in_paper["other systems"] = PAPER_OTHERS
    _draw_curves(paper, "the paper: COCO test-dev, M40", in_paper)
    figure.savefig(out_png)


def _draw_curves(axes: Axes, title: str, curves: Mapping[str, Mapping[str, _Point]]) -> None:
    """A curve for each name, a note at each point, and the envelope of all points behind."""
    style_axes(axes, title)
    axes.set(xlabel="inference time, ms an image", ylabel="COCO box AP, %")
    axes.margins(0.1)
    points = [point for curve in curves.values() for point in curve.values()]
    envelope = zip(*upper_envelope(points), strict=True)
    axes.plot(*envelope, "#bbbbbb", lw=6, zorder=1, label="upper envelope")
    for (name, curve), color in zip(curves.items(), itertools.cycle(SERIES_COLORS)):
        line = "s" if name == "other systems" else "o-"
        axes.plot(*zip(*curve.values(), strict=True), line, color=color, label=name)
        for text, point in curve.items():
            style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": color}
            axes.annotate(text, point, (3, -13), **style)
    axes.legend(frameon=False, loc="lower right")
