"""Precision-recall pictures: what they show is read back from matplotlib's artists."""

import numpy as np
import pytest

from focal_retina.evaluation.coco_evaluator import PrecisionCurves
from focal_retina.figures.training import draw_pr_curves


def curves_of(average_precision):
    """Precision that is the given number at all recalls and IoUs; NaN: a class without objects."""
    values = np.array(average_precision, float)
    precision = np.broadcast_to(np.where(np.isnan(values), -1, values), (10, 101, len(values)))
    names = [f"class {k}" for k in range(len(values))]
    return PrecisionCurves(precision, np.arange(0.5, 1, 0.05), np.linspace(0, 1, 101), names)


def test_each_class_has_a_line_and_a_bar_from_best_to_worst(tmp_path, saved):
    draw_pr_curves(curves_of([0.2, np.nan, 0.7]), "birds", tmp_path / "pr.png")
    by_iou, by_class, bars = saved[0].axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([70, 20])
    assert [label.get_text() for label in bars.get_yticklabels()] == ["class 2", "class 0"]
    assert [line.get_ydata()[50] for line in by_class.lines] == pytest.approx([0.7, 0.2])
    assert len(by_iou.lines) == 10
    np.testing.assert_allclose(by_iou.lines[3].get_ydata(), 0.45)
    assert by_iou.get_legend().get_texts()[0].get_text() == "IoU 0.50: AP 45.0"
