import pytest
import torch
from torch.nn import functional as F

from focal_retina.losses import CrossEntropy


@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_equals_binary_cross_entropy(make_batch, kernel):
    logits, labels = make_batch(num_classes=4)
    expected = 0
    for x, y in zip(logits, labels, strict=True):
        targets = F.one_hot(y[y >= 0], 5)[:, :-1].float()
        expected += F.binary_cross_entropy_with_logits(x[y >= 0], targets, reduction="sum")
    total, _ = CrossEntropy(kernel=kernel)(logits, labels)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(total, logits),
        torch.autograd.grad(expected, logits),
        rtol=1e-5,
        atol=1e-7,
    )


def test_half_alpha_halves_and_extreme_alphas_extinguish(make_batch):
    logits, labels = make_batch()

    def total(alpha):
        return CrossEntropy(alpha=alpha)(logits, labels)[0]

    torch.testing.assert_close(2 * total(0.5), total(-1.0), rtol=1e-6, atol=0)
    # α = 1 leaves the positives alone, α = 0 the negatives
    torch.testing.assert_close(total(0.0) + total(1.0), total(-1.0), rtol=1e-6, atol=0)
    positives = sum(
        F.softplus(-x.gather(2, y.clamp(0, 4).unsqueeze(2)).squeeze(2))[(y >= 0) & (y < 5)].sum()
        for x, y in zip(logits, labels, strict=True)
    )
    torch.testing.assert_close(total(1.0), positives, rtol=1e-6, atol=0)


def test_from_config(cfg, make_batch):
    """α is Detectron2's key; γ is not CE's."""
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA = 0.75
    cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA = 2.0
    batch = make_batch()
    built = CrossEntropy(**CrossEntropy.from_config(cfg))
    torch.testing.assert_close(built(*batch)[0], CrossEntropy(alpha=0.75)(*batch)[0])
