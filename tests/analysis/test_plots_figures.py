"""Pictures of losses: what they show is read back from matplotlib's artists."""

import cv2
import numpy as np
import pytest

from focal_retina.analysis import plots
from focal_retina.analysis.loss_distribution import LossCdf, LossShares
from focal_retina.analysis.loss_shapes import figures
from focal_retina.analysis.speed_accuracy import PAPER_OTHERS, PAPER_RETINANET, Measurement


def legend_texts(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("data", figures(), ids=lambda data: data.name)
def test_loss_figure_shows_its_curves(tmp_path, saved, data):
    plots.draw_loss_figure(data, tmp_path / "figure.png")
    (axes,) = saved[0].axes
    shown = [line.get_ydata().tolist() for line in axes.lines]
    assert shown == [getattr(curve, data.quantity) for curve in data.curves]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(data.curves)  # no two look the same
    names = {name for curve in data.curves for name in (curve.family, curve.variant) if name}
    assert set(legend_texts(axes.get_legend())) == names
    assert axes.get_xlabel() and axes.get_ylabel()
    assert cv2.imread(str(tmp_path / "figure.png")) is not None


@pytest.mark.parametrize("data", figures(), ids=lambda data: data.name)
def test_legend_does_not_cover_the_curves(tmp_path, saved, data):
    plots.draw_loss_figure(data, tmp_path / "figure.png")
    (axes,) = saved[0].axes
    box = axes.get_legend().get_window_extent()
    for line in axes.lines:
        assert not box.count_contains(axes.transData.transform(line.get_xydata()))


def test_cdfs_from_both_sides(tmp_path, saved):
    curve = LossCdf([0, 0.5, 1], [0, 0.1, 1], 0.0)
    cdfs = {"positives": {0.0: None, 2.0: None}, "negatives": {0.0: None, 2.0: curve}}
    counts = {"positives": 0, "negatives": 1234567}
    plots.draw_loss_cdfs(cdfs, counts, tmp_path / "fig4.png")
    empty, above, also_empty, below = saved[0].axes
    assert above.get_title("left") == "1,234,567 negatives"
    (line,) = above.lines
    assert line.get_xydata().tolist() == [[0, 0], [0.5, 0.1], [1, 1]]
    (line,) = below.lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 1], [0.5, 0.9], [0, 0]])
    for panel in (empty, also_empty):
        assert [text.get_text() for text in panel.texts] == ["no loss of positives"]
    assert legend_texts(above.get_legend()) == ["γ = 2"]


def make_shares(num_parts, num_gammas=2):
    values = np.random.default_rng(0).uniform(size=(num_gammas, 2, num_parts))
    values = (values / values.sum((1, 2), keepdims=True)).tolist()
    names = [f"part {i}" for i in range(num_parts)]
    return LossShares(names, [[1] * num_parts] * 2, values, values)


def test_bars_show_the_shares(tmp_path, saved):
    shares = make_shares(3)
    plots.draw_loss_shares({"level": shares}, [0.0, 2.0], 0.25, tmp_path / "shares.png")
    loss_axes, _ = saved[0].axes
    heights = [[bar.get_height() for bar in bars] for bars in loss_axes.containers]
    np.testing.assert_allclose(heights, 100 * np.reshape(shares.loss, (4, 3)))
    bottoms = [bar.get_y() for bar in loss_axes.containers[1]]
    np.testing.assert_allclose(bottoms, heights[0])  # positives stand on negatives
    assert saved[0].legends[0].get_title().get_text().endswith("α = 0.25")


def test_many_classes_become_the_largest_and_the_rest(tmp_path, saved):
    shares = make_shares(80)
    plots.draw_loss_shares({"class": shares}, [0.0, 2.0], -1, tmp_path / "shares.png")
    names = [text.get_text() for text in saved[0].axes[1].get_xticklabels()]
    assert len(names) == 12 and names[-1] == "69 others"
    by_class = np.sum(shares.loss, axis=(0, 1))
    assert names[0] == f"part {by_class.argmax()}"
    heights = [[bar.get_height() for bar in bars] for bars in saved[0].axes[0].containers]
    assert np.sum(heights) == pytest.approx(200)  # 100 % of each γ: nothing is lost


def test_more_gammas_than_colours(tmp_path, saved):
    gammas = [i / 2 for i in range(9)]
    shares = {"level": make_shares(2, num_gammas=9)}
    plots.draw_loss_shares(shares, gammas, 0.25, tmp_path / "shares.png")
    assert len(saved[0].axes[0].containers) == 18
    curve = LossCdf([0, 1], [0, 1], 0.0)
    cdfs = {sign: dict.fromkeys(gammas, curve) for sign in ("positives", "negatives")}
    plots.draw_loss_cdfs(cdfs, {"positives": 5, "negatives": 5}, tmp_path / "fig4.png")
    assert len(saved[1].axes[0].lines) == 9


def test_speed_accuracy_shows_runs_beside_the_paper(tmp_path, saved):
    runs = [("R18", 500, 20.0, 30.0), ("R18", 400, 10.0, 25.0), ("R50", 400, 30.0, 28.0)]
    measurements = [
        Measurement(name, size, time, 5, {"AP": ap}, "some set", "some GPU", "")
        for name, size, time, ap in runs
    ]
    plots.draw_speed_accuracy(measurements, tmp_path / "fig2.png")
    measured, paper = saved[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in measured.lines}
    assert lines["R18"] == [[10, 25], [20, 30]]
    assert lines["R50"] == [[30, 28]]
    assert lines["upper envelope"] == [[10, 25], [20, 30]]
    assert "some set" in measured.get_title("left") and "some GPU" in measured.get_title("left")
    lines = {line.get_label(): line.get_xydata().tolist() for line in paper.lines}
    for name, points in PAPER_RETINANET.items():
        assert lines[name] == [list(map(float, point)) for point in points]
    assert {text.get_text() for text in paper.texts} >= {*PAPER_OTHERS, "400", "800"}
