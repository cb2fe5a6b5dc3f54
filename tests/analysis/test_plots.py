"""Pictures: what they show is read back from matplotlib's artists and from their pixels."""

import cv2
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from focal_retina.analysis import plots
from focal_retina.analysis.detections import Comparison, LabeledBox
from focal_retina.analysis.plots import detections
from focal_retina.analysis.training_metrics import Series


def image_file(folder, width, height, color=(40, 40, 40)):
    path = folder / f"{width}x{height}.png"
    cv2.imwrite(str(path), np.full((height, width, 3), color[::-1], np.uint8))
    return str(path)


def test_curves_show_every_loss_the_rate_and_evaluated_ap(tmp_path, saved):
    iterations = [19, 39, 59]
    metrics = {
        name: Series(iterations, [3.0, 2.0, 1.0])
        for name in ("total_loss", "loss_cls", "loss_box_reg", "lr", "time")
    }
    metrics["bbox/AP"] = Series([59], [51.26])
    metrics["bbox/AP-ring"] = Series([59], [10.0])
    plots.draw_training_curves(metrics, tmp_path / "curves.png")
    losses, precision, rate = saved[0].axes
    assert {line.get_label() for line in losses.lines} == {"total_loss", "loss_cls", "loss_box_reg"}
    assert [line.get_xdata().tolist() for line in rate.lines] == [iterations]
    assert [line.get_label() for line in precision.lines] == ["AP"]
    assert [text.get_text() for text in precision.texts] == ["51.3"]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_curves_of_a_run_that_was_not_evaluated(tmp_path, saved):
    plots.draw_training_curves({"total_loss": Series([0], [float("nan")])}, tmp_path / "c.png")
    assert [text.get_text() for text in saved[0].axes[1].texts] == ["not evaluated"]


def test_sheet_places_boxes_on_their_objects(tmp_path, saved):
    """Boxes of one image, enlarged twice, in the left and in the right panel."""
    half = detections._PANEL // 2
    truth, found = LabeledBox(0, (10, 20, 50, 60)), LabeledBox(1, (30, 40, 90, 80), 0.876)
    comparison = Comparison(image_file(tmp_path, half, half), (half, half), [truth], [found])
    plots.draw_detection_sheet([comparison], ["cat", "dog"], "title", tmp_path / "sheet.png")
    (axes,) = saved[0].axes
    texts = {text.get_text() for text in axes.texts}
    assert {"cat", "dog 0.88", "title"} <= texts
    outlines = [p.get_bbox().extents for p in axes.patches if not p.get_fill()]
    left, top = detections._MARGIN, detections._HEADER
    right = left + detections._PANEL + detections._GAP
    np.testing.assert_allclose(outlines[0], np.add((left, top) * 2, (20, 40, 100, 120)))
    np.testing.assert_allclose(outlines[1], np.add((right, top) * 2, (60, 80, 180, 160)))

    pixels = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1].astype(int)
    colors = [np.array(to_rgb(c)) * 255 for c in detections._class_colors(2)]
    at_left_edge, at_right_edge = pixels[top + 110, left + 20], pixels[top + 150, right + 60]
    assert np.abs(at_left_edge - colors[0]).max() < 60
    assert np.abs(at_right_edge - colors[1]).max() < 60
    np.testing.assert_allclose(pixels[top + 5, left + 5], 40, atol=2)  # the picture itself


@pytest.mark.parametrize("sizes", [[(4000, 3000)], [(16, 12)] * 4, [(300, 20), (20, 300)]])
def test_panels_have_one_size_and_do_not_meet(sizes):
    panels, height = detections._place_panels(sizes)
    taken = []
    for (width, size_height), panel in zip(sizes, panels, strict=True):
        assert max(panel.width, panel.height) == detections._PANEL
        assert panel.width / panel.height == pytest.approx(width / size_height, rel=0.05)
        assert panel.y + panel.height <= height
        for x in (panel.x, panel.x + detections._PANEL + detections._GAP):
            taken.append((x, panel.y, x + panel.width, panel.y + panel.height))
    for index, one in enumerate(taken):
        assert not any(detections._overlap(one, other) for other in taken[:index])


def test_crowded_labels_neither_overlap_nor_leave_the_panel():
    panel = detections._Panel(0, 0, 280, 200, 1.0)
    rng = np.random.default_rng(0)
    taken = []
    for x, y in rng.uniform(0, 180, (80, 2)):
        place = detections._free_place("platelets 0.55", (x, y, x + 30, y + 20), panel, taken)
        if place is not None:
            taken.append(place)
    assert 10 < len(taken) < 80  # most find no place in such a crowd
    for index, one in enumerate(taken):
        assert one[0] >= 0 and one[1] >= 0 and one[2] <= 280 and one[3] <= 200
        assert not any(detections._overlap(one, other) for other in taken[:index])


@pytest.mark.parametrize("num_classes", [1, 6, 10, 80])
def test_classes_have_different_colours(num_classes):
    colors = detections._class_colors(num_classes)
    assert len(set(colors[:num_classes])) == num_classes


def test_a_sheet_without_objects_and_of_many_classes(tmp_path):
    names = [f"class {i}" for i in range(80)]
    comparisons = [Comparison(image_file(tmp_path, 30, 20), (30, 20), [], []) for _ in range(2)]
    plots.draw_detection_sheet(comparisons, names, "nothing", tmp_path / "sheet.png")
    everything = [LabeledBox(i, (1, 1, 9, 9)) for i in range(80)]
    comparisons[0] = comparisons[0]._replace(ground_truth=everything)
    plots.draw_detection_sheet(comparisons, names, "all", tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


def test_pictures_leave_nothing_in_pyplot(tmp_path):
    """No window toolkit is asked for a figure, so none has to be there."""
    before = pyplot.get_fignums()
    plots.draw_training_curves({"lr": Series([0], [0.1])}, tmp_path / "curves.png")
    assert pyplot.get_fignums() == before
