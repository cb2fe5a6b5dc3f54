"""The curves of figures 1, 5, 6 and 7, against what the paper's text says of them."""

import json
import math

import pytest
import torch

from focal_retina.figures.loss_curves import evaluate, figures, write_loss_figure
from focal_retina.losses import CrossEntropy, FocalLoss, FocalLossStar


@pytest.fixture(scope="module")
def by_name():
    return {figure.name: figure for figure in figures()}


def logit(p):
    return torch.tensor(p, dtype=torch.float64).logit()


def test_gamma_2_against_cross_entropy():
    """Section 3.2: 100 times lower at p_t = .9, about 1000 times at .968, at most 4 times below."""
    x_t = logit([0.9, 0.968, 0.5, 0.3, 0.01])
    cross_entropy, _ = evaluate(CrossEntropy(alpha=-1), x_t)
    focal, _ = evaluate(FocalLoss(alpha=-1, gamma=2), x_t)
    ratio = cross_entropy / focal
    assert ratio[0] == pytest.approx(100)
    assert ratio[1] == pytest.approx(1000, rel=0.03)
    assert (ratio[2:] <= 4 + 1e-9).all()


def test_steepest_slope_of_gamma_2(by_name):
    """-1.129 at x_t = -2.79 (from the derivative in appendix B)."""
    x_t = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    _, gradient = evaluate(FocalLoss(alpha=-1, gamma=2), x_t)
    assert gradient.min() == pytest.approx(-1.129, abs=5e-4)
    assert x_t[gradient.argmin()] == pytest.approx(-2.79, abs=5e-3)
    (curve,) = [c for c in by_name["fig6"].curves if c.family == "FL, γ = 2"]
    assert min(curve.gradient) == pytest.approx(-1.129, abs=5e-4)


@pytest.mark.parametrize(
    "loss, derivative",
    [
        (CrossEntropy(alpha=-1), lambda p, x: p - 1),
        (
            FocalLoss(alpha=-1, gamma=2),
            lambda p, x: (1 - p) ** 2 * (2 * p * math.log(p) + p - 1),
        ),
        (FocalLossStar(alpha=-1, gamma=2, beta=1), lambda p, x: 1 / (1 + math.exp(-2 * x - 1)) - 1),
    ],
)
def test_derivatives_of_appendix_b(loss, derivative):
    x_t = torch.linspace(-6, 6, 25, dtype=torch.float64)
    _, gradient = evaluate(loss, x_t)
    expected = [derivative(1 / (1 + math.exp(-x)), x) for x in x_t.tolist()]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


def test_figure_1_falls_with_gamma_and_p(by_name):
    curves = by_name["fig1"].curves
    assert [c.parameters["gamma"] for c in curves] == [0, 0.5, 1, 2, 5]
    losses = torch.tensor([c.loss for c in curves])
    assert (losses.diff(dim=0) < 0).all()
    assert (losses.diff(dim=1) < 0).all()
    assert curves[0].loss[0] == pytest.approx(-math.log(by_name["fig1"].x[0]))


def test_figure_7_holds_table_3_and_cross_entropy(by_name):
    curves = {(c.parameters["gamma"], c.parameters["beta"]): c for c in by_name["fig7"].curves}
    assert {(2, 1), (4, 0)} <= curves.keys()
    assert all(c.parameters["alpha"] == 0.25 for c in curves.values())
    x_t = torch.tensor(by_name["fig7"].x, dtype=torch.float64)
    expected, _ = evaluate(CrossEntropy(alpha=0.25), x_t)
    torch.testing.assert_close(torch.tensor(curves[1, 0].loss, dtype=torch.float64), expected)


@pytest.mark.parametrize("data", figures(), ids=lambda data: data.name)
def test_picture_and_json_show_the_curves(tmp_path, saved, data):
    picture = write_loss_figure(data, tmp_path)
    (axes,) = saved[0].axes
    shown = [line.get_ydata().tolist() for line in axes.lines]
    assert shown == [getattr(curve, data.quantity) for curve in data.curves]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(data.curves)  # no two look the same
    names = {name for curve in data.curves for name in (curve.family, curve.variant) if name}
    legend = axes.get_legend()
    assert {text.get_text() for text in legend.get_texts()} == names
    for line in axes.lines:  # the legend covers no curve
        place = axes.transData.transform(line.get_xydata())
        assert not legend.get_window_extent().count_contains(place)
    numbers = json.loads(picture.with_suffix(".json").read_text())
    assert numbers["x"] == data.x and len(numbers["curves"]) == len(data.curves)
