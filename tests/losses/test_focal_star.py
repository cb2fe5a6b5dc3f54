import pytest
import torch
from fvcore.nn.focal_loss import sigmoid_focal_loss_star
from torch.nn import functional as F

from focal_retina.losses import CrossEntropy, FocalLossStar, focal_loss_star

TABLE_3 = [(2.0, 1.0), (4.0, 0.0)]  # the paper's (γ, β)


@pytest.mark.parametrize("gamma, beta", [*TABLE_3, (0.5, -2.0), (10.0, 3.0)])
def test_value_and_derivative_are_those_of_the_appendix(gamma, beta):
    x_t = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    p_star = (gamma * x_t + beta).sigmoid()
    value = focal_loss_star(x_t, gamma, beta)
    torch.testing.assert_close(value, -p_star.log() / gamma, rtol=1e-9, atol=1e-14)
    (slope,) = torch.autograd.grad(value.sum(), x_t)
    torch.testing.assert_close(slope, p_star - 1, rtol=1e-9, atol=1e-14)


def test_golden_values():
    """Appendix A at x_t = 0: FL*(2, 1) = log(1 + 1/e) / 2 and FL*(4, 0) = log(2) / 4."""
    zero = torch.zeros((), dtype=torch.float64)
    assert focal_loss_star(zero, 2.0, 1.0).item() == pytest.approx(0.15663084, abs=1e-8)
    assert focal_loss_star(zero, 4.0, 0.0).item() == pytest.approx(0.17328680, abs=1e-8)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_equals_fvcore_at_beta_zero(make_batch, gamma, kernel):
    logits, labels = make_batch(level_sizes=(200,))
    (x,), (y,) = logits, labels
    targets = F.one_hot(y[y >= 0], 6)[:, :-1].float()
    expected = sigmoid_focal_loss_star(x[y >= 0], targets, alpha=0.25, gamma=gamma, reduction="sum")
    loss = FocalLossStar(alpha=0.25, gamma=gamma, beta=0.0, kernel=kernel)
    total, _ = loss(logits, labels)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(total, logits),
        torch.autograd.grad(expected, logits),
        rtol=1e-5,
        atol=1e-7,
    )


def test_beta_shifts_the_curve():
    """FL*(γ, β)(x_t) = FL*(γ, 0)(x_t + β/γ)."""
    x_t = torch.linspace(-5, 5, 101, dtype=torch.float64)
    shifted = focal_loss_star(x_t + 1.5 / 3.0, 3.0, 0.0)
    torch.testing.assert_close(focal_loss_star(x_t, 3.0, 1.5), shifted, rtol=1e-12, atol=0)


def test_gamma_one_beta_zero_is_cross_entropy(make_batch):
    batch = make_batch()
    ce = CrossEntropy(alpha=0.25)(*batch)[0]
    star = FocalLossStar(alpha=0.25, gamma=1.0, beta=0.0)(*batch)[0]
    torch.testing.assert_close(star, ce, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["plain", "auto"])
@pytest.mark.parametrize("gamma, beta", [*TABLE_3, (0.1, 0.0), (10.0, -5.0), (10.0, 5.0)])
def test_finite_everywhere(gamma, beta, kernel, dtype):
    magnitudes = torch.tensor([0.0, 1.0, 17.0, 18.0, 89.0, 104.0, 1e3, 1e4])
    x = torch.cat([magnitudes, -magnitudes]).to(dtype).reshape(1, -1, 1).requires_grad_()
    loss = FocalLossStar(alpha=-1.0, gamma=gamma, beta=beta, kernel=kernel)
    for label, y in ((0, 1.0), (1, -1.0)):
        total, _ = loss([x], [torch.full(x.shape[:2], label)])
        (gradient,) = torch.autograd.grad(total, x)
        assert gradient.isfinite().all()
        expected = F.softplus(-(gamma * y * x.detach().double() + beta)) / gamma
        torch.testing.assert_close(total.double(), expected.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match="gamma > 0"):
        FocalLossStar(gamma=gamma)


def test_from_config(cfg):
    cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA = 4.0
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.BETA = 0.5
    expected = {"alpha": 0.25, "gamma": 4.0, "beta": 0.5, "kernel": "auto"}
    assert FocalLossStar.from_config(cfg) == expected
