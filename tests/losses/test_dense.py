"""Laws that every dense loss keeps, whatever its formula and kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.losses import CrossEntropy, FocalLoss, FocalLossStar

LOSSES = {
    "ce": lambda **kwargs: CrossEntropy(alpha=0.75, **kwargs),
    "fl": lambda **kwargs: FocalLoss(alpha=0.25, gamma=2.0, **kwargs),
    "fl_per_class": lambda **kwargs: FocalLoss(
        alpha=[0.1, 0.9, 0.5, 0.0, 1.0], gamma=0.5, **kwargs
    ),
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


def test_permuting_anchors_permutes_gradients(loss, make_batch):
    logits, labels = make_batch(level_sizes=(40,))
    total, (gradient,) = value_and_gradients(loss, logits, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = logits[0].detach()[:, order].requires_grad_()
    total2, (gradient2,) = value_and_gradients(loss, [shuffled], [labels[0][:, order]])
    torch.testing.assert_close(total2, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient2, gradient[:, order], rtol=1e-6, atol=1e-9)


def test_levels_and_images_add_up(loss, make_batch):
    logits, labels = make_batch(num_images=3)
    whole, _ = loss(logits, labels)
    by_level = sum(loss([x], [y])[0] for x, y in zip(logits, labels, strict=True))
    by_image = sum(
        loss([x[i : i + 1] for x in logits], [y[i : i + 1] for y in labels])[0] for i in range(3)
    )
    torch.testing.assert_close(by_level, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(by_image, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("wild", [1e4, float("inf"), float("-inf"), float("nan")])
def test_ignored_anchors_have_no_influence(loss, make_batch, wild):
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
def test_nothing_to_learn_is_zero_with_zero_gradients(loss, make_batch, case):
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


@given(
    num_classes=st.integers(1, 7),
    level_sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    num_images=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    gamma=st.just(0.0) | st.floats(0.01, 5),
)
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_equals_a_loop_over_every_anchor_and_class(
    make_batch, kernel, num_classes, level_sizes, num_images, seed, gamma
):
    logits, labels = make_batch(
        num_classes=num_classes, level_sizes=level_sizes, num_images=num_images, seed=seed
    )
    alpha = [(k + 1) / (num_classes + 1) for k in range(num_classes)]
    expected = 0.0
    for x, y in zip(logits, labels, strict=True):
        for image in range(num_images):
            for anchor, label in enumerate(y[image].tolist()):
                for k in range(num_classes):
                    if label == -1:
                        continue
                    p = 1 / (1 + torch.exp(-x[image, anchor, k].double())).item()
                    p_t, alpha_t = (p, alpha[k]) if label == k else (1 - p, 1 - alpha[k])
                    expected -= (
                        alpha_t * (1 - p_t) ** gamma * torch.tensor(p_t).double().log().item()
                    )
    total, _ = FocalLoss(alpha=alpha, gamma=gamma, kernel=kernel)(logits, labels)
    assert total.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_fp32(loss, make_batch, dtype):
    logits, labels = make_batch(level_sizes=(500,), dtype=dtype)
    total, (gradient,) = value_and_gradients(loss, logits, labels)
    wide = logits[0].detach().float().requires_grad_()
    expected, (wide_gradient,) = value_and_gradients(loss, [wide], labels)
    assert total.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wide_gradient.to(dtype), rtol=1e-2, atol=1e-6)


def test_autocast_changes_nothing(loss, make_batch):
    logits, labels = make_batch()
    expected = value_and_gradients(loss, logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(loss, logits, labels)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_logits_may_be_views_of_convolution_outputs(loss):
    num_images, num_anchors, num_classes, height, width = 2, 3, 5, 4, 6
    generator = torch.Generator().manual_seed(0)
    conv_out = torch.randn(
        num_images, num_anchors * num_classes, height, width, generator=generator
    )
    conv_out = conv_out.to(memory_format=torch.channels_last).requires_grad_()
    # (N, A·K, H, W) -> (N, H·W·A, K), Detectron2's order of anchors; a view in channels_last
    x = conv_out.permute(0, 2, 3, 1).reshape(num_images, -1, num_classes)
    labels = torch.randint(-1, num_classes + 1, x.shape[:2], generator=generator)
    total, (gradient,) = value_and_gradients(loss, [x], [labels])
    copy = x.detach().clone().requires_grad_()
    total2, (gradient2,) = value_and_gradients(loss, [copy], [labels])
    torch.testing.assert_close((total, gradient), (total2, gradient2), rtol=1e-6, atol=0)
    transposed = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    total3, (gradient3,) = value_and_gradients(loss, [transposed], [labels])
    torch.testing.assert_close((total3, gradient3), (total2, gradient2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives_of_the_plain_form(make_batch, name):
    logits, labels = make_batch(level_sizes=(4, 2), dtype=torch.float64)
    loss = LOSSES[name](kernel="plain").double()
    assert loss(logits, labels)[0].dtype == torch.float64

    def total(*x):
        return loss(list(x), labels)[0]

    assert torch.autograd.gradcheck(total, logits)
    assert torch.autograd.gradgradcheck(total, logits)


def test_class_alphas_move_with_the_module_but_not_into_the_state_dict():
    loss = FocalLoss(alpha=[0.1, 0.2])
    assert not loss.state_dict()
    assert all(isinstance(w, torch.Tensor) for w in loss.to("meta").weights)
    assert loss.weights[0].device.type == "meta"


@pytest.mark.parametrize("name", LOSSES)
def test_plain_form_reads_no_value_on_the_host(make_batch, name):
    """Meta tensors have no values: what runs on them never waits for a CUDA device."""
    logits, labels = make_batch()
    logits = [x.detach().to("meta").requires_grad_() for x in logits]
    loss = LOSSES[name](kernel="plain").to("meta")
    total, gradients = value_and_gradients(loss, logits, [y.to("meta") for y in labels])
    assert total.shape == () and [g.shape for g in gradients] == [x.shape for x in logits]


def test_inputs_that_do_not_fit_are_errors(make_batch):
    logits, labels = make_batch(num_classes=5)
    with pytest.raises(ValueError, match=r"logits \(N, R_l, K\)"):
        FocalLoss()(logits, labels[:-1])
    with pytest.raises(ValueError, match="at least one level"):
        FocalLoss()([], [])
    with pytest.raises(ValueError, match="2 class alphas, but logits of 5 classes"):
        FocalLoss(alpha=[0.1, 0.2])(logits, labels)
    with pytest.raises(ValueError, match="'blocked': choose one of auto, plain, numba, triton"):
        FocalLoss(kernel="blocked")
    for wrong in (-2, 6):
        labels[0][0, 0] = wrong
        with pytest.raises(ValueError, match=f"{wrong}.*NUM_CLASSES"):
            FocalLoss()(logits, labels)
