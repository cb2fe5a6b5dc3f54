"""The course of a training, from Detectron2's metrics.json, and the pictures at its end."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.coco_evaluator import PRECISION_CURVES_FILE, load_precision_curves
from .detections import draw_detections
from .pr_curves import draw_pr_curves
from .style import DPI, style_axes

_logger = logging.getLogger(__name__)


class Series(NamedTuple):
    """One scalar over the training, iterations ascending."""

    iterations: list[int]
    values: list[float]


def read_metrics(metrics_json: Path) -> dict[str, Series]:
    """Read a metrics.json, one json object a line, each with its "iteration": series by name.

    A resumed training appends to the file and starts at its last checkpoint. Where a scalar's
    iterations jump back, the resumed run replaces what the interrupted one had written from there.
    A line that is cut off (its writer was killed) is left out, with a warning.

    Raises:
        ValueError: the file holds no metrics at all.
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
                    _append(metrics.setdefault(name, Series([], [])), iteration, float(value))
    if not metrics:
        raise ValueError(f"{metrics_json} holds no metrics")
    return metrics


def _append(series: Series, iteration: int, value: float) -> None:
    while series.iterations and series.iterations[-1] >= iteration:
        series.iterations.pop()
        series.values.pop()
    series.iterations.append(iteration)
    series.values.append(value)


def draw_training_curves(metrics: Mapping[str, Series], out_png: Path) -> None:
    """Draw losses, AP where it was evaluated, and learning rate, over the iterations."""
    figure = Figure(figsize=(11, 5.5), dpi=DPI, layout="constrained")
    panels = figure.subplot_mosaic([["loss", "ap"], ["loss", "rate"]], width_ratios=(3, 2))
    total = [name for name in ("total_loss",) if name in metrics]
    losses = [*total, *sorted(name for name in metrics if name.startswith("loss"))]
    _draw(panels["loss"], "training loss", {name: metrics[name] for name in losses})
    panels["loss"].set(ylim=(0, None), xlabel="iteration")

    precision = {
        name.replace("bbox/", ""): series
        for name, series in metrics.items()
        if name.endswith(("bbox/AP", "bbox/AP50", "bbox/AP75"))
    }
    _draw(panels["ap"], "COCO box AP, %", precision, marker="o")
    panels["ap"].set_ylim(0, 100)
    for iterations, values in precision.values():
        if math.isfinite(values[-1]):  # NaN: the data set has no objects
            last = (iterations[-1], values[-1])
            panels["ap"].annotate(
                f"{values[-1]:.1f}", last, (5, 3), textcoords="offset points", fontsize=8
            )
    if not precision:
        panels["ap"].text(0.5, 0.5, "not evaluated", transform=panels["ap"].transAxes, ha="center")

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
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)


def write_training_report(cfg: CfgNode) -> None:
    """Write training.png, and of each evaluated data set detections.png and pr_curves.png, to
    cfg.OUTPUT_DIR.

    The log then says where everything is. With several sets in DATASETS.TEST the names hold their
    set's: detections_NAME.png. Precision and recall are those of COCO's metrics. A data set that
    is evaluated by others has no pr_curves.png.
    """
    output = Path(cfg.OUTPUT_DIR)
    draw_training_curves(read_metrics(output / "metrics.json"), output / "training.png")
    lines = []
    for name in cfg.DATASETS.TEST:
        suffix = f"_{name}" if len(cfg.DATASETS.TEST) > 1 else ""
        folder = output / "inference" / name
        # One file, called coco_… or lvis_instances_results.json after the evaluator.
        for results in folder.glob("*_instances_results.json"):
            picture = output / f"detections{suffix}.png"
            draw_detections(name, results, picture)
            lines.append(f"detections beside ground truth  {picture}")
        if (folder / PRECISION_CURVES_FILE).exists():
            precision = load_precision_curves(folder / PRECISION_CURVES_FILE)
            picture = output / f"pr_curves{suffix}.png"
            draw_pr_curves(precision, f"{name}: precision and recall", picture)
            lines.append(f"precision against recall        {picture}")
    lines += [
        f"model                           {output / 'model_final.pth'}",
        f"training curves                 {output / 'training.png'}",
        f"numbers, one json a line        {output / 'metrics.json'}",
        f"TensorBoard                     tensorboard --logdir {output}",
        f"to find objects in images: focal-retina predict --model {output} --output DIR IMAGES",
    ]
    _logger.info("Where to look:\n%s", "\n".join(lines))
