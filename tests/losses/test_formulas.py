"""The formulas against the paper and against other libraries: FL, then FL*, then CE."""

import math
from functools import partial

import pytest
import torch
import torchvision
from fvcore.nn import sigmoid_focal_loss
from fvcore.nn.focal_loss import sigmoid_focal_loss_star
from helpers import default_cfg
from helpers import make_dense_batch as make_batch
from torch.nn import functional as F

from focal_retina.losses import OHEM, CrossEntropy, FocalLoss, FocalLossStar
from focal_retina.losses.dense import focal_loss, focal_loss_star

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]  # the paper's Table 1b, and 10
MAGNITUDES = [0.0, 1e-4, 1.0, 10.0, 16.6, 17.5, 18.0, 50.0, 88.0, 89.0, 104.0, 1e3, 1e4]
TABLE_3 = [(2.0, 1.0), (4.0, 0.0)]  # the paper's (γ, β)
PEERS = [sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss]


def logit(p: float) -> torch.Tensor:
    return torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)


def slope(loss, x_t: torch.Tensor, *args: float) -> torch.Tensor:
    x_t = x_t.detach().requires_grad_()
    return torch.autograd.grad(loss(x_t, *args).sum(), x_t)[0]


def test_easy_examples_lose_what_the_paper_says():
    """Section 3.2: γ = 2 against CE is 100x less at p_t = .9, ~1000x at .968, ≤ 4x at p_t ≤ .5."""

    def ratio(p):
        return (focal_loss(logit(p), 0.0) / focal_loss(logit(p), 2.0)).item()

    assert [ratio(0.9), ratio(0.5)] == pytest.approx([100, 4], rel=1e-9)
    assert ratio(0.968) == pytest.approx(1000, rel=0.03)
    assert all(1 < ratio(p) < 4 for p in (0.01, 0.1, 0.3, 0.49))


def test_steepest_slope():
    """Of γ = 2: -1.129 at x_t = -2.79, from the derivative in the paper's appendix B."""
    x_t = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    slopes = slope(focal_loss, x_t, 2.0)
    assert slopes.min().item() == pytest.approx(-1.129, abs=5e-4)
    assert x_t[slopes.argmin()].item() == pytest.approx(-2.79, abs=5e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_value_is_the_definition_and_derivative_that_of_appendix_b(gamma):
    x_t = torch.linspace(-12, 12, 241, dtype=torch.float64)
    p_t = x_t.sigmoid()
    expected = -((1 - p_t) ** gamma) * p_t.log()
    torch.testing.assert_close(focal_loss(x_t, gamma), expected, rtol=1e-8, atol=1e-14)
    expected = (1 - p_t) ** gamma * (gamma * p_t * p_t.log() + p_t - 1)
    torch.testing.assert_close(slope(focal_loss, x_t, gamma), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["plain", "auto"])
@pytest.mark.parametrize(
    "gamma, beta",
    [*((x, None) for x in (*GAMMAS, 1e4)), *TABLE_3, (0.1, 0.0), (10.0, -5.0), (10.0, 5.0)],
)
def test_finite_everywhere_and_right_far_out(gamma, beta, kernel, dtype):
    """FL where β is None, else FL*."""
    x = torch.tensor([sign * m for m in MAGNITUDES for sign in (-1, 1)]).to(dtype)
    x = x.reshape(1, -1, 1).requires_grad_()
    options = {"alpha": -1.0, "gamma": gamma, "kernel": kernel}
    loss = FocalLoss(**options) if beta is None else FocalLossStar(beta=beta, **options)
    for label, y in ((0, 1.0), (1, -1.0)):  # K = 1: class 0, and background
        total, _ = loss([x], [torch.full(x.shape[:2], label)])
        (gradient,) = torch.autograd.grad(total, x)
        assert total.isfinite() and gradient.isfinite().all()
        # The hopeless example: loss -x_t and slope -y. The perfect one: nothing.
        x_t = y * x.detach().double()
        hopeless = gradient[x_t < -1000].double()
        torch.testing.assert_close(hopeless, torch.full_like(hopeless, -y))
        assert (gradient[x_t > 1000] == 0).all()
        if beta is None:
            expected = F.softplus(-x_t) * (-gamma * F.softplus(x_t)).exp()
        else:
            expected = F.softplus(-(gamma * x_t + beta)) / gamma
        torch.testing.assert_close(total.double(), expected.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "loss_class, peer",
    [*((FocalLoss, peer) for peer in PEERS), (FocalLossStar, sigmoid_focal_loss_star)],
)
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 1.0), (0.75, 0.0), (-1, 3.0)])
@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_equals_fvcore_and_torchvision(loss_class, peer, alpha, gamma, kernel):
    arguments = {"beta": 0.0} if loss_class is FocalLossStar else {}
    gamma = gamma or (4.0 if arguments else 0.0)
    logits, labels = make_batch(level_sizes=(200,), scale=2.0)
    (x,), (y,) = logits, labels
    targets = F.one_hot(y[y >= 0], 6)[:, :-1].float()
    expected = peer(x[y >= 0], targets, alpha=alpha, gamma=gamma, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected, x)
    total, _ = loss_class(alpha=alpha, gamma=gamma, kernel=kernel, **arguments)(logits, labels)
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_one_class_expresses_several_labels_an_anchor():
    """As docs/plugin.md says it."""
    x = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    target = x.sin() > 0.5
    labels = torch.where(target, 0, 1).reshape(2, -1)
    total, _ = FocalLoss()([x.reshape(2, -1, 1)], [labels])
    expected = sigmoid_focal_loss(x, target.float(), alpha=0.25, gamma=2.0, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("gamma", [0.1, 0.2, 0.5])
def test_finite_where_fvcore_and_torchvision_are_not(peer, gamma):
    """1 - p_t rounds to 0 at x ≈ 18, where the slope of a power below 1 is infinite: 0·∞ = NaN."""
    x = torch.full((1, 1, 1), 18.0, requires_grad=True)
    theirs = peer(x, torch.ones_like(x), alpha=0.25, gamma=gamma, reduction="sum")
    assert torch.autograd.grad(theirs, x)[0].isnan().all()
    total, _ = FocalLoss(alpha=0.25, gamma=gamma)([x], [torch.zeros(1, 1, dtype=torch.int64)])
    (gradient,) = torch.autograd.grad(total, x)
    exact = -0.25 * math.exp(-18 * (1 + gamma)) * (1 + gamma)  # to first order in exp(-18)
    assert gradient.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, 0.25, [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_cross_entropy_is_a_case_of_both(alpha):
    ce, _ = CrossEntropy(alpha=alpha)(*make_batch())
    for case in (FocalLoss(alpha=alpha, gamma=0), FocalLossStar(alpha=alpha, gamma=1, beta=0)):
        torch.testing.assert_close(case(*make_batch())[0], ce, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf, 1e300, 1e39])
def test_gamma_out_of_range_is_an_error(gamma):
    with pytest.raises(ValueError, match="0 <= gamma <= 10000"):
        FocalLoss(gamma=gamma)
    for of_star in ((gamma, 0.0), (2.0, gamma - 1e9), (0.0, 1.0), (1e-300, 1.0)):
        with pytest.raises(ValueError, match="0.0001 <= gamma <= 10000 .* -10000 <= beta"):
            FocalLossStar(gamma=of_star[0], beta=of_star[1])


@pytest.mark.parametrize("gamma, beta", [*TABLE_3, (0.5, -2.0), (10.0, 3.0)])
def test_star_value_and_derivative_are_those_of_the_appendix(gamma, beta):
    x_t = torch.linspace(-3, 3, 61, dtype=torch.float64)
    p_star = (gamma * x_t + beta).sigmoid()
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-14)
    close(focal_loss_star(x_t, gamma, beta), -p_star.log() / gamma)
    close(slope(focal_loss_star, x_t, gamma, beta), p_star - 1)


def test_star_golden_values():
    """Appendix A at x_t = 0: FL*(2, 1) = log(1 + 1/e) / 2 and FL*(4, 0) = log(2) / 4."""
    zero = torch.zeros((), dtype=torch.float64)
    assert focal_loss_star(zero, 2.0, 1.0).item() == pytest.approx(0.15663084, abs=1e-8)
    assert focal_loss_star(zero, 4.0, 0.0).item() == pytest.approx(0.17328680, abs=1e-8)


def test_from_config():
    cfg = default_cfg()
    cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA = 0.5
    cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA = 1.5
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL = "plain"
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.BETA = 0.75
    of_ce = {"alpha": 0.5, "kernel": "plain"}
    assert CrossEntropy.from_config(cfg) == of_ce  # γ is not CE's
    assert FocalLoss.from_config(cfg) == {**of_ce, "gamma": 1.5}
    assert FocalLossStar.from_config(cfg) == {**of_ce, "gamma": 1.5, "beta": 0.75}
    ohem = {"batch_size": 256, "nms_thresh": 0.7, "one_to_three": True}
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.OHEM.update({k.upper(): v for k, v in ohem.items()})
    assert OHEM.from_config(cfg) == {**of_ce, **ohem}

    class Mixin:
        pass

    class Smoothed(Mixin, FocalLoss):
        def __init__(self, *, epsilon=0.1, **kwargs):
            super().__init__(**kwargs)

    assert Smoothed.from_config(cfg) == FocalLoss.from_config(cfg)
