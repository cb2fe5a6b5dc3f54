"""Figure 4 against the definition, sample by sample."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.engine import UserError
from focal_retina.figures.loss_cdf import (
    SIGNS,
    cumulate,
    draw_logits,
    hardest_shares,
    loss_shares,
    read_loss_cdf,
)
from focal_retina.losses import focal_loss
from focal_retina.modeling.predictions import LabeledPredictions

GAMMAS = (0.0, 0.5, 1.0, 2.0)
K = 3


class Model:
    """Random logits and labels of two levels, all kinds of labels among them, image by image."""

    num_classes = K

    def eval(self):
        pass

    def preprocess_image(self, batch):
        return SimpleNamespace(tensor=None)

    def label_and_predict(self, images, batch):
        generator = torch.Generator().manual_seed(batch[0]["image_id"])
        logits = [torch.randn(1, r, K, generator=generator) * 3 - 2 for r in (60, 15)]
        labels = torch.randint(-1, K + 1, (1, 75), generator=generator)
        anchors = [range(60), range(15)]
        return LabeledPredictions(anchors, logits, labels, *[None] * 4)


def batches(count):
    return [[{"image_id": i, "file_name": f"{i}.jpg"}] for i in range(count)]


def samples_of(count):
    """sign -> rows (x_t, level · K + class), straight from the definition."""
    found = {sign: [] for sign in SIGNS}
    for batch in batches(count):
        predictions = Model().label_and_predict(None, batch)
        cells = [level for level, x in enumerate(predictions.logits) for _ in range(x.shape[1])]
        rows = torch.cat(predictions.logits, dim=1)[0].tolist()
        for level, row, label in zip(cells, rows, predictions.labels[0].tolist(), strict=True):
            for k, logit in enumerate(row if label >= 0 else ()):
                sign, x_t = ("positives", logit) if k == label else ("negatives", -logit)
                found[sign].append((x_t, level * K + k))
    return found


def test_every_logit_is_drawn_where_there_are_few():
    drawn, expected = draw_logits(Model(), batches(3), 1000), samples_of(3)
    for sign in SIGNS:
        x_t, cells, seen = drawn[sign]
        assert seen == len(expected[sign])
        rows = zip(x_t.tolist(), cells.tolist(), strict=True)
        assert sorted(rows) == sorted(expected[sign])


def test_of_many_logits_a_fixed_number_is_drawn_with_one_chance_for_all():
    everything = samples_of(1)["negatives"]
    drawn = [draw_logits(Model(), batches(1), 40)["negatives"] for _ in range(2)]
    assert torch.equal(drawn[0].x_t, drawn[1].x_t)  # the same in each call
    assert len(drawn[0].x_t) == 40 and drawn[0].seen == len(everything)
    assert set(zip(drawn[0].x_t.tolist(), drawn[0].cells.tolist(), strict=True)) <= {*everything}
    x_t = torch.cat([draw_logits(Model(), batches(1) * 400, 40)["negatives"].x_t])
    mean, std = np.mean([x for x, _ in everything]), np.std([x for x, _ in everything])
    assert abs(float(x_t.mean()) - mean) < 4 * std / len(x_t) ** 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_named_with_the_image(monkeypatch, value):
    predictions = Model().label_and_predict(None, *batches(1))
    predictions.logits[1][0, 3, 1] = value
    monkeypatch.setattr(Model, "label_and_predict", lambda *_: predictions)
    with pytest.raises(UserError, match=r"0\.jpg.*diverged"):
        draw_logits(Model(), batches(1), 40)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.001, 3.0, 100.0]),
    offset=st.sampled_from([-40.0, -4.6, 0.0, 5.0]),
    count=st.sampled_from([1, 7, 5000]),
)
def test_curve_is_the_sort_and_convex(seed, scale, offset, count):
    x_t = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale + offset
    for gamma, cdf in cumulate(x_t, GAMMAS).items():
        losses = np.sort(focal_loss(x_t, float(gamma)).double().numpy())
        if cdf is None:
            assert losses.sum() == 0
            continue
        exact = np.concatenate([[0], np.cumsum(losses)]) / losses.sum()
        samples, loss = cdf["samples"], cdf["loss"]
        ranks = np.rint(np.array(samples) * count).astype(int)
        np.testing.assert_allclose(loss, exact[ranks], atol=1e-9)
        assert (ranks[0], ranks[-1], loss[0], loss[-1]) == (0, count, 0, 1)
        slopes = np.diff(loss) / np.diff(samples)
        assert (slopes >= 0).all() and (np.diff(slopes) > -1e-6 * slopes.max()).all()


def test_hardest_samples_of_a_known_set():
    """CE of p_t = e^-1 … e^-4 is 1 … 4: the hardest quarter holds 4 of 10, a fifth .8 of that."""
    p_t = torch.tensor([1.0, 3.0, 2.0, 4.0], dtype=torch.float64).neg().exp()
    cdf = cumulate(p_t.logit(), [0.0])["0"]
    assert cdf["loss"] == pytest.approx([0, 0.1, 0.3, 0.6, 1])
    assert cumulate(torch.empty(0), [0.0]) == {"0": None}
    shares = hardest_shares({"cdf": {"positives": {"0": cdf}, "negatives": {"0": None}}})
    assert shares == {"hardest 20% of positives, γ 0": "32%", "hardest 1% of negatives, γ 0": "–"}


@pytest.mark.parametrize("alpha", [0.25, 0.9, -1.0])
def test_shares_against_the_definition(alpha):
    """Also where one of 10 negatives was drawn, each standing for 10."""
    drawn = draw_logits(Model(), batches(2), 1000)
    drawn["negatives"] = drawn["negatives"]._replace(seen=10 * drawn["negatives"].seen)
    shares = loss_shares(drawn, GAMMAS, alpha, ["p3", "p4"], ["a", "b", "c"])
    weights = (10 * (1 - alpha), alpha) if alpha >= 0 else (10, 1)
    for g, gamma in enumerate(GAMMAS):
        expected = {"loss": np.zeros((2, 2 * K)), "gradient": np.zeros((2, 2 * K))}
        for s, (sign, weight) in enumerate(zip(SIGNS, weights, strict=True)):
            x_t = drawn[sign].x_t.double().requires_grad_()
            loss = focal_loss(x_t, gamma)
            (slope,) = torch.autograd.grad(loss.sum(), x_t)
            for quantity, values in (("loss", loss.detach()), ("gradient", slope.abs())):
                np.add.at(expected[quantity][s], drawn[sign].cells, weight * values)
        for quantity, sums in expected.items():
            by_cell = (sums / sums.sum()).reshape(2, 2, K)
            for kind, axis in {"level": 2, "class": 1}.items():
                found = shares[kind][quantity][g]
                np.testing.assert_allclose(found, by_cell.sum(axis), rtol=1e-5)


@pytest.mark.parametrize("text", ["", "[]", '{"images": 3, "cdf": {"positives": {"0": {}}}}'])
def test_a_foreign_json_counts_as_none(tmp_path, text):
    (tmp_path / "loss_distribution.json").write_text(text)
    assert read_loss_cdf(tmp_path) is None
