"""Pictures of an evaluation: what they show is read back from matplotlib's artists."""

import numpy as np
import pytest

from focal_retina.figures.evaluation import draw_confusion_matrix, draw_diagnosis, draw_pr_curves


def explained_of(average_precision):
    """Precision that is the given number at all recalls and IoUs; None: a class without objects."""
    recalls, known = np.linspace(0, 1, 101), [x for x in average_precision if x is not None]
    return {
        "dataset": "birds",
        "threshold": 0.25,
        "classes": [{"class": f"class {k}", "AP": x} for k, x in enumerate(average_precision)],
        "precision_curves": {
            "iou": np.linspace(0.5, 0.95, 10),
            "recall": recalls,
            "by_iou": [[np.mean(known)] * 101] * 10,
            "by_class": [[-100 if x is None else x] * 101 for x in average_precision],
        },
    }


def test_each_class_has_a_line_and_a_bar_from_best_to_worst(tmp_path, saved):
    draw_pr_curves(explained_of([20, None, 70]), tmp_path / "pr.png")
    by_iou, by_class, bars = saved[0].axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([70, 20])
    assert [label.get_text() for label in bars.get_yticklabels()] == ["class 2", "class 0"]
    assert [line.get_ydata()[50] for line in by_class.lines] == pytest.approx([70, 20])
    assert len(by_iou.lines) == 10
    np.testing.assert_allclose(by_iou.lines[3].get_ydata(), 45)
    assert by_iou.get_legend().get_texts()[0].get_text() == "IoU 0.50: AP 45.0"


@pytest.mark.parametrize("num_classes", [3, 80])
def test_the_confusion_matrix_has_all_counts_and_the_classes_confused_most(
    num_classes, tmp_path, saved
):
    matrix = np.diag([10] * num_classes + [0])
    matrix[:, -1], matrix[-1, :-1] = 4, 3
    matrix[1, 2] = 7
    matrix[-1, -1] = 0
    content = {**explained_of([50] * num_classes), "confusion_matrix": matrix.tolist()}
    draw_confusion_matrix(content, tmp_path / "matrix.png")
    (axes,) = saved[0].axes
    counts = {x.get_position(): int(x.get_text()) for x in axes.texts}
    names = [x.get_text() for x in axes.get_yticklabels()]
    assert sum(counts.values()) == matrix.sum()
    assert counts[names.index("class 2"), names.index("class 1")] == 7
    assert names[-2:] == [*({3: ["class 2"], 80: ["56 other classes"]}[num_classes]), "background"]


def test_the_diagnosis_shows_costs_curves_and_bins(tmp_path, saved):
    kinds = ("Miss", "Bkg", "Dupe", "Both", "Loc", "Cls")
    bins = [(0.1, 0.2, 5), (0.0, 0.0, 0), (0.8, 0.9, 4)]
    names = "avg_confidence", "avg_accuracy", "count"
    content = {
        **explained_of([20, None]),
        "F1": 60.0,
        "f1_curves": {"threshold": [0, 0.5, 1], "mean": [40, 60, 0], "by_class": [[1, 2, 3], None]},
        "errors": {
            "delta_ap": {kind: i / 100 for i, kind in enumerate(kinds)},
            "counts": dict.fromkeys(kinds, 1),
        },
        "calibration": {"ece": 0.1, "bins": [dict(zip(names, x, strict=True)) for x in bins]},
    }
    draw_diagnosis(content, tmp_path / "diagnosis.png")
    f1, errors, calibration = saved[0].axes
    assert [list(x.get_ydata()) for x in f1.lines[:2]] == [[1, 2, 3], [40, 60, 0]]
    assert f1.lines[2].get_xdata()[0] == 0.25
    assert [bar.get_width() for bar in errors.patches] == pytest.approx([5, 4, 3, 2, 1, 0])
    assert errors.get_yticklabels()[0].get_text() == "wrong class"
    assert calibration.lines[1].get_xydata().tolist() == [[0.1, 0.2], [0.8, 0.9]]
