"""Accumulated loss distributions against the sort of all samples, and laws of their sums."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.analysis.loss_distribution import SATURATION, SIGNS, LossDistribution
from focal_retina.losses import focal_loss

GAMMAS = (0.0, 0.5, 1.0, 2.0)
NUM_CLASSES = 3
STATE = ("bin_counts", "bin_sums", "class_counts", "class_sums")


def make_batch(seed, *, num_images=2, scale=3.0, offset=-2.0, dtype=torch.float32):
    """Logits and labels of two levels, all kinds of labels among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_images, 60), (num_images, 15)]
    logits = [
        (torch.randn(*s, NUM_CLASSES, generator=generator) * scale + offset).to(dtype)
        for s in shapes
    ]
    labels = [torch.randint(-1, NUM_CLASSES + 1, s, generator=generator) for s in shapes]
    return logits, labels


def accumulate(*batches, gammas=GAMMAS):
    distribution = LossDistribution(num_levels=2, num_classes=NUM_CLASSES, gammas=gammas)
    for logits, labels in batches:
        distribution.update(logits, labels)
    return distribution


def samples_of(logits, labels):
    """sign -> (x_t, level, class) of each sample, straight from the definition."""
    found = {sign: [] for sign in SIGNS}
    for level, (x, y) in enumerate(zip(logits, labels, strict=True)):
        for logit_row, label in zip(x.double().flatten(0, 1), y.flatten().tolist(), strict=True):
            for k, logit in enumerate(logit_row.tolist() if label >= 0 else ()):
                sign, x_t = ("positives", logit) if k == label else ("negatives", -logit)
                found[sign].append((x_t, level, k))
    return {sign: np.array(rows) for sign, rows in found.items()}


def sorted_cdf(x_t, gamma):
    losses = np.sort(focal_loss(torch.as_tensor(x_t, dtype=torch.float64), gamma).numpy())
    return np.concatenate([[0], np.cumsum(losses)]) / losses.sum()


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.001, 0.05, 3.0, 15.0, 100.0]),
    offset=st.sampled_from([-40.0, -4.6, 0.0, 5.0]),
)
def test_cdf_against_the_sort(seed, scale, offset):
    """At its points as if sorted; between them too high by at most the stated error."""
    batch = make_batch(seed, scale=scale, offset=offset)
    distribution = accumulate(batch)
    samples = samples_of(*batch)
    for sign, gamma in itertools.product(SIGNS, GAMMAS):
        cdf = distribution.cdf(sign, gamma)
        exact = sorted_cdf(samples[sign][:, 0], gamma)
        fractions = np.linspace(0, 1, len(exact))
        np.testing.assert_allclose(np.interp(cdf.samples, fractions, exact), cdf.loss, atol=1e-9)
        gap = np.interp(fractions, cdf.samples, cdf.loss) - exact
        assert gap.min() > -1e-9
        assert gap.max() <= cdf.error + 1e-9


def test_the_stated_error_is_attained():
    """All samples in one bin, at its two ends: nothing smaller would hold."""
    low, high = 1.0, 1.0 + 1 / 64 - 1e-9
    x = torch.tensor([low] * 50 + [high] * 50, dtype=torch.float64)[None, :, None]
    distribution = LossDistribution(num_levels=1, num_classes=1, gammas=(2.0,))
    distribution.update([x], [torch.zeros(1, 100, dtype=torch.int64)])
    cdf = distribution.cdf("positives", 2.0)
    exact = sorted_cdf(x.flatten(), 2.0)
    gap = (np.linspace(0, 1, 101) - exact).max()
    assert len(cdf.samples) == 2
    assert 0.005 < gap == pytest.approx(cdf.error, rel=1e-4)


def test_error_is_small_where_samples_are_many():
    x = torch.randn(1, 200_000, 1, generator=torch.Generator().manual_seed(0)) * 2 - 4
    distribution = LossDistribution(num_levels=1, num_classes=1)
    distribution.update([x], [torch.full((1, 200_000), 1)])
    for gamma in GAMMAS:
        assert distribution.cdf("negatives", gamma).error < 3e-4


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_cdf_is_convex_and_rises_from_0_to_1(seed):
    distribution = accumulate(make_batch(seed))
    for sign, gamma in itertools.product(SIGNS, GAMMAS):
        cdf = distribution.cdf(sign, gamma)
        assert (cdf.samples[0], cdf.loss[0]) == (0, 0)
        assert (cdf.samples[-1], cdf.loss[-1]) == (1, 1)
        steps, rises = np.diff(cdf.samples), np.diff(cdf.loss)
        assert (steps > 0).all() and (rises >= 0).all()
        assert (np.diff(rises / steps) > -1e-9).all()
        assert cdf.hardest(0) == 0 and cdf.hardest(1) == 1


def test_hardest_samples_of_a_known_set():
    """CE of p_t = e^-1 … e^-4 is 1 … 4: the hardest quarter holds 4 of 10."""
    p_t = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).neg().exp()
    distribution = LossDistribution(num_levels=1, num_classes=1, gammas=(0.0,))
    distribution.update([p_t.logit()[None, :, None]], [torch.zeros(1, 4, dtype=torch.int64)])
    cdf = distribution.cdf("positives", 0.0)
    assert cdf.loss == pytest.approx([0, 0.1, 0.3, 0.6, 1])
    assert cdf.hardest(0.25) == pytest.approx(0.4)
    assert cdf.error == 0
    assert distribution.cdf("negatives", 0.0) is None


def test_splitting_and_order_change_nothing():
    first, second = make_batch(1), make_batch(2)
    together = [torch.cat(pair) for pair in zip(first[0], second[0], strict=True)]
    labels = [torch.cat(pair) for pair in zip(first[1], second[1], strict=True)]
    whole = accumulate((together, labels))
    for other in (accumulate(first, second), accumulate(second, first)):
        for name in STATE:
            torch.testing.assert_close(
                getattr(other, name), getattr(whole, name), rtol=1e-12, atol=1e-15
            )


def test_blocks_change_nothing(monkeypatch):
    batch = make_batch(3)
    whole = accumulate(batch)
    monkeypatch.setattr("focal_retina.analysis.loss_distribution._BLOCK", 7)
    for name in STATE:
        torch.testing.assert_close(
            getattr(accumulate(batch), name), getattr(whole, name), rtol=1e-12, atol=1e-15
        )


def test_additive_over_images():
    first, second = accumulate(make_batch(1)), accumulate(make_batch(2))
    both = accumulate(make_batch(1), make_batch(2))
    for name in STATE:
        total = getattr(first, name) + getattr(second, name)
        torch.testing.assert_close(getattr(both, name), total, rtol=1e-12, atol=1e-15)


def test_memory_does_not_grow_with_the_samples():
    def size(distribution):
        tensors = [x for x in vars(distribution).values() if isinstance(x, torch.Tensor)]
        assert len(tensors) == len(STATE) + 1
        return sum(x.numel() * x.element_size() for x in tensors)

    few, many = accumulate(make_batch(0)), accumulate(*(make_batch(i) for i in range(20)))
    assert many.num_negatives > 10 * few.num_negatives
    assert size(few) == size(many) < 2**21


@pytest.mark.parametrize("alpha", [0.25, 0.9, -1.0])
def test_shares_against_the_definition(alpha):
    batch = make_batch(5)
    shares = accumulate(batch).shares(alpha, ["p3", "p4"], ["a", "b", "c"])
    weights = (
        {"positives": alpha, "negatives": 1 - alpha} if alpha >= 0 else dict.fromkeys(SIGNS, 1)
    )
    samples = samples_of(*batch)
    for g, gamma in enumerate(GAMMAS):
        sums = {"loss": {}, "gradient": {}}
        for sign in SIGNS:
            x_t = torch.tensor(samples[sign][:, 0], dtype=torch.float64, requires_grad=True)
            loss = focal_loss(x_t, gamma)
            (slope,) = torch.autograd.grad(loss.sum(), x_t)
            sums["loss"][sign] = weights[sign] * loss.detach().numpy()
            sums["gradient"][sign] = weights[sign] * slope.abs().numpy()
        for quantity, values in sums.items():
            whole = sum(x.sum() for x in values.values())
            for s, sign in enumerate(SIGNS):
                for part, column, count in (("level", 1, 2), ("class", 2, 3)):
                    expected = [
                        values[sign][samples[sign][:, column] == c].sum() / whole
                        for c in range(count)
                    ]
                    found = getattr(shares[part], quantity)[g][s]
                    np.testing.assert_allclose(found, expected, rtol=1e-9)
                x = samples[sign][:, 0] * (1 if sign == "positives" else -1)
                middle = (1 / (1 + np.exp(-x)) > 0.1) & (1 / (1 + np.exp(-x)) < 0.3)
                bucket = shares["score bucket"].names.index("0.1–0.3")
                found = getattr(shares["score bucket"], quantity)[g][s][bucket]
                assert found == pytest.approx(values[sign][middle].sum() / whole)


def test_shares_sum_to_1_and_samples_to_all():
    distribution = accumulate(make_batch(6))
    for share in distribution.shares(0.25, ["p3", "p4"], ["a", "b", "c"]).values():
        for values in (share.loss, share.gradient):
            np.testing.assert_allclose(np.sum(values, axis=(1, 2)), 1)
        totals = [distribution.num_negatives, distribution.num_positives]
        assert np.sum(share.samples, axis=1).tolist() == totals


def test_saturated_logits():
    """An own-class logit is right where it is high; a negative where it is low."""
    beyond = SATURATION + 1e-6
    logits = torch.tensor([beyond, -beyond, SATURATION - 1e-6, 0], dtype=torch.float64)
    assert float(logits[0].float().sigmoid()) == 1  # what the threshold stands for
    distribution = LossDistribution(num_levels=1, num_classes=1)
    for label in (0, 1):
        distribution.update([logits[None, :, None]], [torch.full((1, 4), label)])
    assert distribution.saturated() == {key: {"right": 0.25, "wrong": 0.25} for key in SIGNS}
    distribution.update([logits[None, :1, None]], [torch.full((1, 1), 0)])
    assert distribution.saturated()["positives"] == {"right": 0.4, "wrong": 0.2}
    assert distribution.saturated()["negatives"] == {"right": 0.25, "wrong": 0.25}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision(dtype):
    logits, labels = make_batch(7, dtype=dtype)
    expected = accumulate(([x.double() for x in logits], labels))
    for name in STATE:
        torch.testing.assert_close(
            getattr(accumulate((logits, labels)), name), getattr(expected, name)
        )


def test_huge_logits_are_finite():
    logits, labels = make_batch(8, scale=1000.0)
    distribution = accumulate((logits, labels))
    assert distribution.bin_sums.isfinite().all() and distribution.class_sums.isfinite().all()
    assert distribution.cdf("negatives", 2.0).loss[-1] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_logits_are_refused_and_leave_no_trace(value):
    logits, labels = make_batch(9)
    logits[1][0, 3, 1] = value
    distribution = accumulate()
    with pytest.raises(ValueError, match="diverged"):
        distribution.update(logits, labels)
    assert distribution.num_negatives == 0


@pytest.mark.parametrize("gammas", [(), (-1.0,), (1.0, 1.0)])
def test_bad_gammas(gammas):
    with pytest.raises(ValueError, match="gammas"):
        accumulate(gammas=gammas)


def test_only_ignored_anchors():
    logits, labels = make_batch(10)
    distribution = accumulate((logits, [torch.full_like(y, -1) for y in labels]))
    assert distribution.cdf("negatives", 0.0) is None
    shares = distribution.shares(0.25, ["p3", "p4"], ["a", "b", "c"])
    assert np.sum(shares["level"].loss) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    logits, labels = make_batch(11)
    distribution = LossDistribution(num_levels=2, num_classes=NUM_CLASSES, device="cuda")
    distribution.update([x.cuda() for x in logits], [y.cuda() for y in labels])
    expected = accumulate((logits, labels))
    for name in STATE:
        torch.testing.assert_close(getattr(distribution, name).cpu(), getattr(expected, name))
    assert distribution.cdf("positives", 2.0).loss[-1] == 1
    assert distribution.shares(0.25, ["p3", "p4"], ["a", "b", "c"])["level"].names == ["p3", "p4"]
    assert distribution.saturated().keys() == set(SIGNS)
