"""Precision against recall, over all classes and by class."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..evaluation.coco_evaluator import PrecisionCurves
from . import DPI, style_axes

# As many classes as lines and bars can be told apart; with more, half of them are the best and half
# the worst.
_MAX_CLASSES = 16


def draw_pr_curves(curves: PrecisionCurves, title: str, out_png: Path) -> None:
    """Precision against recall: the mean of the classes by IoU, each class at IoU .5, and AP.

    Classes without objects are left out. With many classes the best and the worst are shown.
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
        style = {"color": colormaps["viridis"](0.92 * t / len(curves.iou_thresholds))}
        label = f"IoU {threshold:.2f}: AP {100 * mean.mean():.1f}"
        by_iou.plot(curves.recall_thresholds, mean, label=label, **style)
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
