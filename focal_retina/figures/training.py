"""The course of a training, from Detectron2's metrics.json, and the pictures at its end."""

import bisect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.coco_evaluator import (
    PRECISION_CURVES_FILE,
    PrecisionCurves,
    load_precision_curves,
)
from . import DPI, style_axes
from .detections import draw_detections

_logger = logging.getLogger(__name__)
_MAX_CLASSES = 16  # whose lines and bars can be told apart


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
    figure = Figure(figsize=(11, 5.5), dpi=DPI, layout="constrained")
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


def draw_pr_curves(curves: PrecisionCurves, title: str, out_png: Path) -> None:
    """Precision against recall: the mean of the classes by IoU, each class at IoU .5, and AP.

    Classes without objects are left out. Of many classes the best and the worst are shown.
    """
    average_precision = curves.average_precision()
    ranking = [int(k) for k in np.argsort(-average_precision) if not np.isnan(average_precision[k])]
    shown, selection = ranking, ""
    if len(ranking) > _MAX_CLASSES:
        half = _MAX_CLASSES // 2
        shown = ranking[:half] + ranking[-half:]
        selection = f": best and worst {half} of {len(ranking)}"

    height = max(4.2, 1.5 + 0.24 * len(shown))
    figure = Figure(figsize=(13, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    by_iou, by_class, bars = figure.subplots(1, 3)
    style_axes(by_iou, f"mean of {len(ranking)} classes, by IoU")
    for t, threshold in enumerate(curves.iou_thresholds if ranking else ()):
        mean = curves.precision[t][:, ranking].mean(axis=1)
        color = colormaps["viridis"](0.92 * t / len(curves.iou_thresholds))
        label = f"IoU {threshold:.2f}: AP {100 * mean.mean():.1f}"
        by_iou.plot(curves.recall_thresholds, mean, label=label, color=color)
        by_iou.legend(edgecolor="none", fontsize=8)

    colors = colormaps["viridis"](np.linspace(0, 0.92, len(shown)))
    style_axes(by_class, f"each class at IoU .5{selection}")
    for k, color in zip(shown, colors, strict=True):
        by_class.plot(curves.recall_thresholds, curves.precision[0, :, k], color=color)
    for axes in (by_iou, by_class):
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")

    style_axes(bars, f"AP, %{selection}")
    drawn = bars.barh(range(len(shown)), 100 * average_precision[shown], color=colors)
    bars.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    bars.set_yticks(range(len(shown)), [curves.class_names[k] for k in shown], fontsize=8)
    bars.set_ylim(max(len(shown), 6) - 0.5, -0.5)  # few bars are not fat ones
    bars.set_xlim(0, 105)
    bars.grid(visible=False, axis="y")
    figure.savefig(out_png)


def write_training_report(cfg: CfgNode) -> None:
    """Write training.png, and of each evaluated data set detections.png and pr_curves.png, to
    cfg.OUTPUT_DIR, and log where everything is.

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
        for path in folder.glob(PRECISION_CURVES_FILE):
            lines.append(f"precision against recall        {output}/pr_curves{suffix}")
            title = f"{name}: precision and recall"
            draw_pr_curves(load_precision_curves(path), title, output / f"pr_curves{suffix}")
    lines += [
        f"model                           {output / 'model_final.pth'}",
        f"training curves                 {output / 'training.png'}",
        f"numbers, one json a line        {output / 'metrics.json'}",
        f"TensorBoard                     tensorboard --logdir {output}",
        f"to find objects in images: focal-retina predict --model {output} --output DIR IMAGES",
    ]
    _logger.info("Where to look:\n%s", "\n".join(lines))
