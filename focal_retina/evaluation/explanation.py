"""What explains an AP: each class at its best threshold, which classes are confused, what kinds of
errors cost how much, and whether scores are probabilities. All at an IoU of .5.

hotcoco's matches and calibration are taken as they are. Its ``f_scores`` give no threshold: F1 is
computed here of the matches. Its confusion matrix takes a detection of a crowd for a wrong one, and
its errors (TIDE, Bolya et al. 2020) take a crowd for an object: both get neither crowds nor
detections that COCO ignores."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from ..files import atomic_write, write_json
from .box_metrics import Matched

_logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
_IOU = 0.5
_CONSOLE_CLASSES = 20
_THRESHOLDS = [i / 100 for i in range(101)]  # of the curves
_BEST = ("threshold", "F1", "precision", "recall")


def explain(coco_eval: COCOeval, class_names: Sequence[str]) -> dict[str, Any]:
    """Of what :func:`~.box_metrics.evaluate_boxes` returned, as json takes it; C classes, T IoUs, R
    recalls, S thresholds of scores. In percent, but thresholds and what is hotcoco's.

    Returns:
        "threshold": the score of the best "F1", the mean of the classes' F1, in which each counts
        alike, as in AP; None where nothing right was found. "classes": COCO's "AP" and "AP50" of
        each, "max_recall" of all its detections, "threshold", "F1", "precision" and "recall" of its
        best F1; None: without objects. "f1_curves": "threshold" (S), "mean" (S) and "by_class"
        (C, S). "precision_curves": "iou" (T), "recall" (R), "by_iou" (T, R), the mean of the
        classes, and "by_class" (C, R; None: no objects). "confusion_matrix" (C + 1, C + 1): rows
        are objects, columns detections of at least "threshold", the last is background; the best
        detection takes an object, whatever its class. "errors" and "calibration": hotcoco's.
    """
    matched: Matched = coco_eval.matched
    evaluation, num_objects = matched.evaluation, matched.num_objects
    # A detection without a status matched a crowd, or is one too many in its image.
    status = evaluation.image_diagnostics(_IOU, -np.inf)["dt_status"]
    ranking = np.argsort(-matched.rows[:, 5], kind="stable").tolist()
    ranking = [i for i in ranking if i + 1 in status]
    rows, is_right = matched.rows[ranking], np.array([status[i + 1] == "tp" for i in ranking], bool)
    scores, labels = rows[:, 5], rows[:, 6].astype(int) - 1

    precision = 100 * coco_eval.eval["precision"][:, :, :, 0, -1]  # of all sizes
    found = {"AP": precision.mean(axis=(0, 1)), "AP50": precision[0].mean(axis=0)}
    found["max_recall"] = 100 * coco_eval.eval["recall"][0, :, 0, -1]
    classes, curves, mean = [], [], np.zeros(len(rows))
    for k, count in enumerate(num_objects.tolist()):
        own = labels == k
        f1 = 2 * is_right[own].cumsum() / (np.arange(1, own.sum() + 1) + count)
        mean[own] = np.diff(f1, prepend=0) if count else 0
        curves.append(_curve(f1, scores[own]) if count else None)
        values = {name: float(x[k]) if count else None for name, x in found.items()}
        best = _best(f1, scores[own], is_right[own], count)
        classes.append({"class": class_names[k], "objects": count, **values, **best})
    has_objects = num_objects > 0
    mean = mean.cumsum() / max(1, has_objects.sum())
    overall = _best(mean, scores, is_right, num_objects.sum())
    plain = _without_crowds(evaluation, rows)
    confusion = plain.confusion_matrix(_IOU, min_score=overall["threshold"])
    by_iou = precision[:, :, has_objects].mean(axis=2) if has_objects.any() else precision[:, :0, 0]
    params, by_class = coco_eval.params, precision[0].T.round(2).tolist()
    grids = {"by_iou": by_iou, "iou": params.iouThrs, "recall": params.recThrs}
    return {
        **{name: overall[name] for name in ("threshold", "F1")},
        "classes": classes,
        "f1_curves": {"threshold": _THRESHOLDS, "mean": _curve(mean, scores), "by_class": curves},
        "precision_curves": {
            **{x: y.round(2).tolist() for x, y in grids.items()},
            "by_class": [x if n else None for x, n in zip(by_class, has_objects, strict=True)],
        },
        "confusion_matrix": confusion["matrix"].tolist(),
        "errors": plain.tide_errors(pos_thr=_IOU),
        "calibration": evaluation.calibration(iou_threshold=_IOU),
    }


def _without_crowds(evaluation: Any, rows: np.ndarray) -> Any:
    """hotcoco's evaluation of the same objects, but crowds, and of these detections."""
    dataset = evaluation.coco_gt.dataset
    objects = [x for x in dataset["annotations"] if not x["iscrowd"]]
    truth = type(evaluation.coco_gt)({**dataset, "annotations": objects})
    plain = type(evaluation)(truth, truth.load_res(rows), "bbox")
    plain.params.max_dets = evaluation.params.max_dets
    plain.evaluate()
    return plain


def _best(f1: np.ndarray, scores: np.ndarray, is_right: np.ndarray, count: int) -> dict[str, Any]:
    """The threshold of the best F1, halfway to the next lower score, and what it gives. ``f1`` is
    that of the first 1, 2 … detections, the best score first."""
    if not (count and is_right.any()):
        return dict.fromkeys(_BEST)
    is_last = np.append(scores[1:] < scores[:-1], True)  # of detections of one score
    i = int(np.where(is_last, f1, -1).argmax())
    right = is_right[: i + 1].sum()
    shares = f1[i], right / (i + 1), right / count
    values = float(scores[i : i + 2].mean()), *(float(100 * x) for x in shares)
    return dict(zip(_BEST, values, strict=True))


def _curve(f1: np.ndarray, scores: np.ndarray) -> list[float]:
    """F1 at each of the thresholds of the curves."""
    counts = np.searchsorted(-scores, np.negative(_THRESHOLDS), side="right")
    return (100 * np.append(0, f1)[counts]).round(2).tolist()


def write_explanation(
    coco_eval: COCOeval, class_names: Sequence[str], dataset_name: str, folder: Path
) -> None:
    """Write evaluation.json and evaluation.md, and log the classes of the lowest AP."""
    if coco_eval.matched is None:
        (folder / EVALUATION_FILE).unlink(missing_ok=True)  # of another evaluation
        _logger.warning("without hotcoco nothing explains the AP of %s", dataset_name)
        return
    explained = explain(coco_eval, class_names)
    summary = "nothing right was found at an IoU of .5: no score threshold is the best"
    if explained["threshold"] is not None:
        best = f"{explained['F1']:.1f}%, at the score threshold {explained['threshold']:.3f}"
        summary = f"best F1 at an IoU of .5, mean of the classes: {best}"
    write_json(folder / EVALUATION_FILE, {"dataset": dataset_name, **explained}, indent=None)
    with atomic_write(folder / "evaluation.md", "w") as file:
        file.write(f"# {dataset_name}\n\n{summary}\n\n{_table(explained['classes'])}\n")
    worst = sorted(explained["classes"], key=lambda x: (x["AP"] is None, x["AP"]))
    rest = f"; all: {folder}/evaluation.md" if len(worst) > _CONSOLE_CLASSES else ""
    table = _table(worst[:_CONSOLE_CLASSES])
    _logger.info(f"{dataset_name} by class, the worst first{rest}\n{table}\n{summary}")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown; percent, but thresholds."""
    cells = [{**x, "class": str(x["class"]).replace("|", r"\|")} for x in rows]
    formats = ["", "", ".1f", ".1f", ".1f", ".3f", ".1f", ".1f", ".1f"]
    return tabulate(cells, headers="keys", tablefmt="pipe", floatfmt=formats, missingval="")
