"""The course of a training, from Detectron2's metrics.json, and the pictures at its end."""

import bisect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from matplotlib.axes import Axes

from ..data.classes import THRESHOLD_FILE
from ..files import write_json
from . import new_figure, style_axes
from .detections import draw_detections
from .evaluation import draw_evaluation

_logger = logging.getLogger(__name__)


class Series(NamedTuple):
    """One scalar over the training, iterations ascending."""

    iterations: list[int]
    values: list[float]


def read_metrics(metrics_json: Path) -> dict[str, Series]:
    """Read a metrics.json, one json object a line, each with its "iteration": series by name.

    Where a scalar's iterations jump back, a resumed training replaces what the interrupted one had
    written from there. A line that is cut off (its writer was killed) is left out, with a warning.
    """
    metrics: dict[str, Series] = {}
    with open(metrics_json, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                iteration = int(row.pop("iteration"))
            except (ValueError, TypeError, AttributeError, KeyError):
                _logger.warning("%s, line %d is cut off and left out", metrics_json, number)
                continue
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    iterations, values = metrics.setdefault(name, Series([], []))
                    kept = bisect.bisect_left(iterations, iteration)
                    iterations[kept:], values[kept:] = [iteration], [float(value)]
    if not metrics:
        raise ValueError(f"{metrics_json} holds no metrics")
    return metrics


def draw_training_curves(metrics: Mapping[str, Series], out_png: Path) -> None:
    """Draw losses, AP where it was evaluated, and learning rate, over the iterations."""
    figure = new_figure(11, 5.5)
    panels = figure.subplot_mosaic([["loss", "ap"], ["loss", "rate"]], width_ratios=(3, 2))
    losses = ["total_loss", *sorted(name for name in metrics if name.startswith("loss"))]
    _draw(panels["loss"], "loss", {x: metrics[x] for x in losses if x in metrics})
    validation = {x: metrics[x] for x in sorted(metrics) if x.endswith("validation/total_loss")}
    _draw(panels["loss"], "loss", validation, marker="o")
    panels["loss"].set(ylim=(0, None), xlabel="iteration")

    precision = {
        f"{name.replace('bbox/', '')}: {series.values[-1]:.1f} at last": series
        for name, series in metrics.items()
        if name.endswith(("bbox/AP", "bbox/AP50", "bbox/AP75"))
    }
    title = "COCO box AP, %" if precision else "COCO box AP: not evaluated"
    _draw(panels["ap"], title, precision, marker="o")
    panels["ap"].set_ylim(0, 100)
    _draw(panels["rate"], "learning rate", {"lr": metrics["lr"]} if "lr" in metrics else {})
    panels["rate"].set(ylim=(0, None), xlabel="iteration")
    end = max(series.iterations[-1] for series in metrics.values())
    for axes in panels.values():
        axes.set_xlim(0, max(1, end) * 1.05)
    figure.savefig(out_png)


def _draw(axes: Axes, title: str, curves: Mapping[str, Series], marker: str = "") -> None:
    style_axes(axes, title)
    for name, (iterations, values) in curves.items():
        axes.plot(iterations, values, label=name, marker=marker, linewidth=1.5)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def write_training_report(cfg: CfgNode) -> None:
    """Write training.png to cfg.OUTPUT_DIR, and of each evaluated data set detections.png there and
    :func:`draw_evaluation`'s pictures beside its numbers, keep the score threshold of the first set
    beside the weights, and log where everything is.

    With several sets in DATASETS.TEST the names hold their set's: detections_NAME.png.
    """
    output = Path(cfg.OUTPUT_DIR)
    draw_training_curves(read_metrics(output / "metrics.json"), output / "training.png")
    lines = []
    for name in cfg.DATASETS.TEST:
        suffix = f"_{name}.png" if len(cfg.DATASETS.TEST) > 1 else ".png"
        folder = output / "inference" / name
        # One file, called coco_… or lvis_instances_results.json after the evaluator.
        for results in folder.glob("*_instances_results.json"):
            lines.append(f"detections beside ground truth  {output}/detections{suffix}")
            draw_detections(name, results, output / f"detections{suffix}")
        if explained := draw_evaluation(folder):
            lines.append(f"classes, errors, thresholds     {folder}/evaluation.md and *.png")
            if name == cfg.DATASETS.TEST[0] and explained["threshold"] is not None:
                kept = {key: explained[key] for key in ("threshold", "F1", "dataset")}
                write_json(output / THRESHOLD_FILE, kept)
                told = f"{kept['threshold']:.3f}, predict's default"
                lines.append(f"threshold of the best F1        {told}")
    lines += [
        f"model                           {output / 'model_final.pth'}",
        f"training curves                 {output / 'training.png'}",
        f"numbers, one json a line        {output / 'metrics.json'}",
        f"TensorBoard                     tensorboard --logdir {output}",
        f"to find objects in images: focal-retina predict --model {output} --output DIR IMAGES",
    ]
    _logger.info("Where to look:\n%s", "\n".join(lines))
