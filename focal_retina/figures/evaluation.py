"""What explains an evaluation, as pictures: precision against recall, which classes are confused,
F1 over the score threshold, kinds of errors, and whether scores are probabilities."""

import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ..evaluation.explanation import EVALUATION_FILE
from . import SERIES_COLORS, new_figure, style_axes

_MAX_CLASSES = 16  # whose lines and bars can be told apart
_MAX_CONFUSED = 24  # whose cells can be read
_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # TIDE's names, and ours:
_NAMES = "wrong class, IoU below .5, both of these, object twice, background, missed objects"


def draw_evaluation(folder: Path) -> dict[str, Any] | None:
    """Draw pr_curves.png, confusion_matrix.png and evaluation.png of the evaluation.json that is in
    ``folder``, whose content is returned; None where there is none."""
    path = folder / EVALUATION_FILE
    if not path.is_file():
        return None
    explained = json.loads(path.read_text("utf-8"))
    draw_pr_curves(explained, folder / "pr_curves.png")
    draw_confusion_matrix(explained, folder / "confusion_matrix.png")
    draw_diagnosis(explained, folder / "evaluation.png")
    return explained


def draw_pr_curves(explained: Mapping[str, Any], out_png: Path) -> None:
    """Precision against recall: the mean of the classes by IoU, each class at IoU .5, and AP.

    Classes without objects are left out. Of many classes the best and the worst are shown.
    """
    classes, curves = explained["classes"], explained["precision_curves"]
    known = [k for k, x in enumerate(classes) if x["AP"] is not None]
    shown, selection = sorted(known, key=lambda k: -classes[k]["AP"]), ""
    if len(known) > _MAX_CLASSES:
        half = _MAX_CLASSES // 2
        shown = shown[:half] + shown[-half:]
        selection = f": best and worst {half} of {len(known)}"

    height = max(4.2, 1.5 + 0.24 * len(shown))
    figure = new_figure(13, height, f"{explained['dataset']}: precision and recall")
    by_iou, by_class, bars = figure.subplots(1, 3)
    style_axes(by_iou, f"mean of {len(known)} classes, by IoU")
    for t, (iou, mean) in enumerate(zip(curves["iou"], curves["by_iou"], strict=True)):
        if mean:
            color = colormaps["viridis"](0.92 * t / len(curves["iou"]))
            label = f"IoU {iou:.2f}: AP {np.mean(mean):.1f}"
            by_iou.plot(curves["recall"], mean, label=label, color=color)
            by_iou.legend(edgecolor="none", fontsize=8)

    colors = colormaps["viridis"](np.linspace(0, 0.92, len(shown)))
    style_axes(by_class, f"each class at IoU .5{selection}")
    for k, color in zip(shown, colors, strict=True):
        by_class.plot(curves["recall"], curves["by_class"][k], color=color)
    for axes in (by_iou, by_class):
        axes.set(xlim=(0, 1), ylim=(0, 102), xlabel="recall", ylabel="precision, %")

    style_axes(bars, f"AP, %{selection}")
    drawn = bars.barh(range(len(shown)), [classes[k]["AP"] for k in shown], color=colors)
    bars.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    bars.set_yticks(range(len(shown)), [classes[k]["class"] for k in shown], fontsize=8)
    bars.set_ylim(max(len(shown), 6) - 0.5, -0.5)  # few bars are not fat ones
    bars.set_xlim(0, 105)
    bars.grid(visible=False, axis="y")
    figure.savefig(out_png)


def draw_confusion_matrix(explained: Mapping[str, Any], out_png: Path) -> None:
    """Counts, coloured by the share of their row. Of many classes those are shown that are confused
    most with others; one row and column hold the rest."""
    matrix = np.array(explained["confusion_matrix"])
    names = [x["class"] for x in explained["classes"]]
    if len(names) > _MAX_CONFUSED:
        between = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
        ranking = np.argsort(-(between.sum(0) + between.sum(1)), kind="stable")
        shown = sorted(ranking[:_MAX_CONFUSED].tolist())
        group = np.full(len(names) + 1, len(shown))  # of each class: its row in the picture
        group[shown], group[-1] = range(len(shown)), len(shown) + 1
        together = np.zeros((len(shown) + 2, len(shown) + 2), int)
        np.add.at(together, (group[:, None], group[None]), matrix)
        rest = f"{len(names) - len(shown)} other classes"
        matrix, names = together, [*(names[k] for k in shown), rest]
    names = [*names, "background"]
    side = 3.2 + 0.34 * max(len(names), 4)
    least = f"a score of {explained['threshold'] or 0:.2f} or more, at an IoU of .5"
    title = f"{explained['dataset']}: objects, and detections with {least}"
    figure = new_figure(max(side + 0.6, 8), side, title)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(matrix):
        color = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="detection (background: missed)", ylabel="object (background: none is there)")
    figure.savefig(out_png)


def draw_diagnosis(explained: Mapping[str, Any], out_png: Path) -> None:
    """F1 over the score threshold, what AP50 each kind of error costs, and calibration."""
    figure = new_figure(14, 4.6, f"{explained['dataset']}, at an IoU of .5")
    f1, errors, calibration = figure.subplots(1, 3)
    _draw_f1(f1, explained)

    style_axes(errors, "errors: AP50 that would be gained without them")
    costs = [100 * explained["errors"]["delta_ap"][x] for x in _KINDS]
    counts = [explained["errors"]["counts"][x] for x in _KINDS]
    bars = errors.barh(_NAMES.split(", "), costs, color=SERIES_COLORS[0])
    labels = [f"{cost:.1f} ({n:,})" for cost, n in zip(costs, counts, strict=True)]
    errors.bar_label(bars, labels, padding=3, fontsize=8)
    errors.set(xlim=(0, max(1, *costs) * 1.35), xlabel="AP50, points (number of errors)")
    errors.invert_yaxis()
    errors.grid(visible=False, axis="y")

    found = explained["calibration"]
    filled = [x for x in found["bins"] if x["count"]]
    confidence, share = ([x[f"avg_{y}"] for x in filled] for y in ("confidence", "accuracy"))
    style_axes(calibration, f"calibration: mean error {found['ece']:.3f}")
    calibration.plot([0, 1], [0, 1], "--", color="#999999", label="scores are probabilities")
    calibration.plot(confidence, share, "o-", color=SERIES_COLORS[0], label="detections")
    calibration.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that is right")
    calibration.legend(edgecolor="none", fontsize=8)
    figure.savefig(out_png)


def _draw_f1(axes: Axes, explained: Mapping[str, Any]) -> None:
    curves, threshold = explained["f1_curves"], explained["threshold"]
    named = zip(explained["classes"], curves["by_class"], strict=True)
    lines = [(x["class"], curve) for x, curve in named if curve is not None]
    has_names = len(lines) <= len(SERIES_COLORS)
    for (name, curve), color in zip(lines, cycle(SERIES_COLORS if has_names else ["#c8c8c8"])):
        axes.plot(curves["threshold"], curve, color=color, lw=1, label=name if has_names else None)
    best = "" if threshold is None else f": best {explained['F1']:.1f} at {threshold:.3f}"
    label = f"mean of {len(lines)} classes{best}"
    axes.plot(curves["threshold"], curves["mean"], color="black", lw=2.5, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", lw=1, ls=":")
    style_axes(axes, "F1 over the score threshold")
    axes.set(xlim=(0, 1), ylim=(0, 102), xlabel="score threshold", ylabel="F1, %")
    axes.legend(edgecolor="none", framealpha=0.8, fontsize=8, loc="lower center")
