"""The curves of figures 1, 5, 6 and 7, against what the paper's text says of them."""

import json
import math

import pytest
import torch

from focal_retina.figures.loss_curves import evaluate, figures, write_loss_figure
from focal_retina.losses import CrossEntropy


@pytest.fixture(scope="module")
def by_name():
    return {figure.name: figure for figure in figures()}


def test_steepest_slope_of_gamma_2(by_name):
    """-1.129 at x_t = -2.79 (from the derivative in appendix B)."""
    (curve,) = [c for c in by_name["fig6"].curves if c["label"] == "FL, γ = 2"]
    assert min(curve["gradient"]) == pytest.approx(-1.129, abs=5e-4)


def test_figure_1_falls_with_gamma_and_p(by_name):
    curves = by_name["fig1"].curves
    assert [c["parameters"]["gamma"] for c in curves] == [0, 0.5, 1, 2, 5]
    losses = torch.tensor([c["loss"] for c in curves])
    assert (losses.diff(dim=0) < 0).all()
    assert (losses.diff(dim=1) < 0).all()
    assert curves[0]["loss"][0] == pytest.approx(-math.log(by_name["fig1"].x[0]))


def test_figure_7_holds_table_3_and_cross_entropy(by_name):
    curves = {tuple(c["parameters"].values()): c for c in by_name["fig7"].curves}
    assert {(0.25, 2, 1), (0.25, 4, 0)} <= curves.keys()
    assert {alpha for alpha, _, _ in curves} == {0.25}
    x_t = torch.tensor(by_name["fig7"].x, dtype=torch.float64)
    expected, _ = evaluate(CrossEntropy(alpha=0.25), x_t)
    assert curves[0.25, 1, 0]["loss"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("data", figures(), ids=lambda data: data.name)
def test_picture_and_json_show_the_curves(tmp_path, saved, data):
    picture = write_loss_figure(data, tmp_path)
    (axes,) = saved[0].axes
    shown = [line.get_ydata().tolist() for line in axes.lines]
    assert shown == [curve[data.quantity] for curve in data.curves]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(data.curves)  # no two look the same
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [curve["label"] for curve in data.curves]
    numbers = json.loads(picture.with_suffix(".json").read_text())
    assert numbers["x"] == data.x and len(numbers["curves"]) == len(data.curves)
