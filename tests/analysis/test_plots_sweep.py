"""Pictures of a sweep: what they show is read back from matplotlib's artists."""

import itertools
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from focal_retina.analysis.loss_distribution import LossCdf
from focal_retina.analysis.plots import sweep
from focal_retina.analysis.plots.sweep import (
    SweepPoint,
    TimePoint,
    draw_ap_against_time,
    draw_ap_over_x,
    draw_loss_curves,
    draw_row_loss_cdfs,
)
from focal_retina.analysis.plots.themes import DARK, LIGHT, row_colors
from focal_retina.analysis.training_metrics import Series

NAN = math.nan


def draw_points(points, out_png, theme=LIGHT, log=True):
    draw_ap_over_x(points, x_label="γ", log=log, reference="γ 0", theme=theme, out_png=out_png)


def contrast(one, other):
    """WCAG 2's ratio of relative luminances."""

    def luminance(color):
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_ap_and_gains_are_drawn_over_x(tmp_path, saved):
    points = [
        SweepPoint(2.0, 34.0, [54.0, 55.0], 54.5, 0.7, 2.9, 4.5, 1.5),
        SweepPoint(0.0, 31.1, [49.5, 50.5], 50.0, 0.7, 0.0, 0.0, NAN),
    ]
    draw_points(points, tmp_path / "ap.png")
    paper, here, gain = saved[0].axes
    assert paper.lines[0].get_xydata().tolist() == [[0, 31.1], [2, 34.0]]
    assert here.lines[0].get_xydata().tolist() == [[0, 50.0], [2, 54.5]]
    assert [49.5, 50.5] in [list(line.get_ydata()) for line in here.lines]
    assert [0.0, 2.9] in [list(line.get_ydata()) for line in gain.lines]
    (bars,) = gain.collections
    assert [s[:, 1].tolist() for s in bars.get_segments()] == [[0, 0], [3.0, 6.0]]
    assert all(axes.get_xlabel() == "γ" for axes in saved[0].axes)
    assert paper.get_xscale() == "symlog"


@pytest.mark.parametrize(("x", "scale"), [((0.1, 1.0), "log"), ((0.0, 0.0), "linear")])
def test_scale_of_x_suits_its_values(tmp_path, saved, x, scale):
    points = [SweepPoint(value, 30.0, [], NAN, NAN, NAN, NAN, NAN) for value in x]
    draw_points(points, tmp_path / "ap.png")
    assert saved[0].axes[0].get_xscale() == scale


def test_panels_without_numbers_say_so(tmp_path, saved):
    draw_points([SweepPoint(1.0, NAN, [], NAN, NAN, NAN, NAN, NAN)], tmp_path / "ap.png")
    texts = [text.get_text() for axes in saved[0].axes for text in axes.texts]
    assert texts == ["no numbers in the paper", "no result"]


def test_loss_of_the_hardest_samples_is_drawn_by_row(tmp_path, saved):
    curve = LossCdf(samples=[0.0, 0.75, 1.0], loss=[0.0, 0.25, 1.0], error=0.0)
    cdfs = {
        "CE": {"positives": {0.0: curve, 2.0: None}, "negatives": {0.0: curve, 2.0: curve}},
        "failed": {},
        "FL": {"positives": {0.0: curve, 1.0: curve}, "negatives": {}},
    }
    draw_row_loss_cdfs(cdfs, theme=DARK, out_png=tmp_path / "cdfs.png")
    panels = saved[0].axes
    assert [len(axes.lines) for axes in panels] == [2, 1, 0, 1]
    assert panels[0].lines[0].get_xydata().tolist() == [[1, 1], [0.25, 0.75], [0, 0]]
    colors = row_colors(3, DARK)
    assert [line.get_color() for line in panels[0].lines] == [colors[0], colors[2]]
    (legend,) = saved[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["CE", "FL"]


def test_loss_curves_are_named_at_their_ends(tmp_path, saved):
    curves = {
        f"row {i}": Series([0, 100], [4.0, 1.0 + i / 1000]) if i != 3 else Series([], [])
        for i in range(10)
    }
    draw_loss_curves(curves, theme=LIGHT, out_png=tmp_path / "loss.png")
    (axes,) = saved[0].axes
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == [n for n in curves if n != "row 3"]
    colors = row_colors(10, LIGHT)
    assert [line.get_color() for line in axes.lines] == colors[:3] + colors[4:]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their lines
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x1 <= saved[0].bbox.x1 and box.y1 <= saved[0].bbox.y1 for box in boxes)


def test_losses_below_zero_or_not_a_number_are_drawn(tmp_path, saved):
    curves = {"a": Series([0, 1], [1.0, -1.0]), "b": Series([0, 1], [1.0, NAN])}
    draw_loss_curves(curves, theme=DARK, out_png=tmp_path / "loss.png")
    assert saved[0].axes[0].get_yscale() == "linear"


def test_ap_against_time_in_a_legible_unit(tmp_path, saved):
    points = {"a": TimePoint(600, 50, 1), "b": TimePoint(NAN, NAN, NAN), "$x$": TimePoint(60, 2, 0)}
    draw_ap_against_time(points, theme=LIGHT, out_png=tmp_path / "time.png")
    (axes,) = saved[0].axes
    assert "minutes" in axes.get_xlabel() and axes.get_xlim()[0] == 0
    assert [text.xy for text in axes.texts] == [(10, 50), (1, 2)]
    assert [text.get_text() for text in axes.texts] == ["a", r"\$x\$"]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_stand_out_from_the_page(tmp_path, theme):
    assert contrast(theme.text, theme.background) >= 7
    for color in (theme.paper, theme.here, *row_colors(10, theme)):
        assert contrast(color, theme.background) >= 3  # what WCAG 2 asks of graphics
    draw_loss_curves({"a": Series([0], [1.0])}, theme=theme, out_png=tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    np.testing.assert_allclose(pixels[2, 2] / 255, to_rgb(theme.background), atol=0.01)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=15))
def test_labels_are_moved_apart_in_their_order(heights):
    gap = 0.06
    placed = sweep._spread(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gaps = np.diff([placed[i] for i in order])
    assert (gaps >= gap - 1e-9).all()
    assert all(0 - 1e-9 <= height <= 1 + 1e-9 for height in placed)
    if (np.diff(sorted(heights)) >= gap).all():
        assert placed == pytest.approx(heights)


def test_long_names_are_shortened():
    assert sweep._short("γ 2, α .25") == "γ 2, α .25"
    assert sweep._short("OHEM 1:3, B = 512, NMS at .5") == "OHEM 1:3, B = 512, NMS at…"
    assert sweep._short("x" * 80) == "x" * 25 + "…"
