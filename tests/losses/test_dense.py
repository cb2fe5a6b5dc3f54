"""Laws that every dense loss keeps, whatever its formula and kernel."""

import pytest
import torch
from helpers import make_dense_batch as make_batch

from focal_retina.losses import CrossEntropy, FocalLoss, FocalLossStar

ALPHAS = [0.1, 0.9, 0.5, 0.0, 1.0]
LOSSES = {
    "ce": lambda **kwargs: CrossEntropy(alpha=0.75, **kwargs),
    "fl": lambda **kwargs: FocalLoss(alpha=0.25, gamma=2.0, **kwargs),
    "fl_per_class": lambda **kwargs: FocalLoss(alpha=ALPHAS, gamma=0.5, **kwargs),
    "fl_star": lambda **kwargs: FocalLossStar(alpha=0.25, gamma=2.0, beta=1.0, **kwargs),
}


@pytest.fixture(params=["plain", "auto"])
def kernel(request):
    return request.param


@pytest.fixture(params=LOSSES)
def loss(request, kernel):
    return LOSSES[request.param](kernel=kernel)


def value_and_gradients(loss, logits, labels):
    total, count = loss(logits, labels)
    assert count is None
    return total, torch.autograd.grad(total, logits)


@pytest.mark.parametrize("wild", [1e4, float("inf"), float("-inf"), float("nan")])
def test_ignored_anchors_have_no_influence(loss, wild):
    logits, labels = make_batch()
    total, gradients = value_and_gradients(loss, logits, labels)
    ignored = [y == -1 for y in labels]
    assert any(mask.any() for mask in ignored)
    changed = [
        torch.where(mask.unsqueeze(-1), wild, x).detach().requires_grad_()
        for x, mask in zip(logits, ignored, strict=True)
    ]
    total2, gradients2 = value_and_gradients(loss, changed, labels)
    torch.testing.assert_close(total2, total, rtol=1e-6, atol=0)
    for a, b, mask in zip(gradients, gradients2, ignored, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)
        assert (b[mask] == 0).all()


@pytest.mark.parametrize("case", ["no images", "no anchors", "all ignored"])
def test_nothing_to_learn_is_zero_with_zero_gradients(loss, case):
    logits, labels = make_batch(
        num_images=0 if case == "no images" else 2,
        level_sizes=(0, 0) if case == "no anchors" else (7, 2),
    )
    if case == "all ignored":
        labels = [torch.full_like(y, -1) for y in labels]
    total, gradients = value_and_gradients(loss, logits, labels)
    assert total == 0 and total.shape == () and total.dtype == torch.float32
    for x, gradient in zip(logits, gradients, strict=True):
        assert gradient.shape == x.shape and (gradient == 0).all()


def test_each_class_has_its_own_alpha(kernel):
    """As in one loss a class, which test_formulas.py compares with other libraries."""
    (x,), (y,) = make_batch(level_sizes=(40,))
    total, _ = FocalLoss(alpha=ALPHAS, kernel=kernel)([x], [y])
    expected = 0.0
    for k, alpha in enumerate(ALPHAS):
        labels = torch.where(y == k, 0, 1).masked_fill(y == -1, -1)
        expected += FocalLoss(alpha=alpha, kernel=kernel)([x[..., k : k + 1]], [labels])[0]
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_fp32(loss, dtype):
    logits, labels = make_batch(level_sizes=(500,), dtype=dtype)
    total, (gradient,) = value_and_gradients(loss, logits, labels)
    wide = logits[0].detach().float().requires_grad_()
    expected, (wide_gradient,) = value_and_gradients(loss, [wide], labels)
    assert total.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wide_gradient.to(dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives_of_the_plain_form(name):
    logits, labels = make_batch(level_sizes=(4, 2), dtype=torch.float64)
    loss = LOSSES[name](kernel="plain").double()
    assert loss(logits, labels)[0].dtype == torch.float64

    def total(*x):
        return loss(list(x), labels)[0]

    assert torch.autograd.gradcheck(total, logits)
    assert torch.autograd.gradgradcheck(total, logits)


@pytest.mark.parametrize("name", LOSSES)
def test_plain_form_reads_no_value_on_the_host(name):
    """Meta tensors have no values: what runs on them never waits for a CUDA device."""
    logits, labels = make_batch()
    logits = [x.detach().to("meta").requires_grad_() for x in logits]
    loss = LOSSES[name](kernel="plain").to("meta")
    total, gradients = value_and_gradients(loss, logits, [y.to("meta") for y in labels])
    assert total.shape == () and [g.shape for g in gradients] == [x.shape for x in logits]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: ([x[0]], [y[0]]),  # (N, C), as for other libraries' losses
        lambda x, y: (x, y),
        lambda x, y: ([x], [torch.zeros_like(x)]),  # one-hot
        *(lambda x, y, dtype=dtype: ([x], [y.to(dtype)]) for dtype in (torch.float, torch.bool)),
        lambda x, y: ([x.long()], [y]),
        lambda x, y: ([x, x], [y]),
        lambda x, y: ([x, x[..., :3]], [y, y]),
        lambda x, y: ([x, x.bfloat16()], [y, y]),
        lambda x, y: ([x[..., :0]], [y]),
        lambda x, y: ([], []),
    ],
)
def test_levels_that_do_not_fit_are_named_with_shape_and_dtype(kernel, change):
    (x,), (y,) = make_batch(level_sizes=(8,))
    logits, labels = change(x.detach(), y)
    with pytest.raises(ValueError, match=r"logits \(N, R_l, K\)") as error:
        FocalLoss(kernel=kernel)(logits, labels)
    for tensor in (*logits, *labels) if isinstance(logits, list) else (logits, labels):
        assert f"{tensor.dtype} {tuple(tensor.shape)}" in str(error.value)


def test_a_formula_of_a_subclass_is_what_is_computed():
    class Doubled(FocalLoss):
        def elementwise(self, x_t):
            return 2 * super().elementwise(x_t)

    batch = make_batch()
    torch.testing.assert_close(Doubled()(*batch)[0], 2 * FocalLoss()(*batch)[0])


def test_values_that_do_not_fit_are_errors():
    logits, labels = make_batch(num_classes=5)
    with pytest.raises(ValueError, match="2 class alphas, but logits of 5 classes"):
        FocalLoss(alpha=[0.1, 0.2])(logits, labels)
    with pytest.raises(ValueError, match="'blocked': choose one of auto, plain, numba, triton"):
        FocalLoss(kernel="blocked")
    for wrong in (-2, 6):
        labels[0][0, 0] = wrong
        with pytest.raises(ValueError, match=f"{wrong}.*NUM_CLASSES"):
            FocalLoss()(logits, labels)
