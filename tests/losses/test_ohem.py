import pytest
import torch
from helpers import make_dense_batch as make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import nms

from focal_retina.losses import OHEM, CrossEntropy


def hardest(losses, wanted, boxes, threshold, most):
    """The first of the wanted anchors that survive NMS over all of them."""
    order = losses.argsort(descending=True, stable=True)
    order = order[wanted[order]]
    return order[nms(boxes[order], -torch.arange(len(order)).float(), threshold)[:most]]


def reference_mining(losses, labels, boxes, num_classes, batch_size, threshold, one_to_three):
    if not one_to_three:
        return hardest(losses, labels >= 0, boxes, threshold, batch_size)
    is_positive, is_negative = (labels >= 0) & (labels < num_classes), labels == num_classes
    positives = hardest(losses, is_positive, boxes, threshold, batch_size // 4)
    negatives = hardest(losses, is_negative, boxes, threshold, 3 * len(positives))
    return torch.cat([positives, negatives])


def make_anchors(seed: int, level_sizes) -> list[torch.Tensor]:
    """Boxes with whole-number corners, so that ties occur; some have no area."""
    generator, anchors = torch.Generator().manual_seed(seed), []
    for size in level_sizes:
        corner = torch.randint(0, 24, (size, 2), generator=generator)
        extents = torch.randint(0, 12, (size, 2), generator=generator)
        anchors.append(torch.cat([corner, corner + extents], dim=1).float())
    return anchors


@given(
    seed=st.integers(0, 2**16),
    level_sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    batch_size=st.integers(4, 24),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    one_to_three=st.booleans(),
    alpha=st.sampled_from([-1.0, 0.25, [0.2, 0.5, 0.9]]),
)
def test_mines_what_a_full_nms_would(seed, level_sizes, batch_size, threshold, one_to_three, alpha):
    logits, labels = make_batch(seed=seed, num_classes=3, level_sizes=level_sizes)
    anchors = make_anchors(seed, level_sizes)
    loss = OHEM(batch_size=batch_size, nms_thresh=threshold, one_to_three=one_to_three, alpha=alpha)
    mined = torch.cat(loss.mine(logits, labels, anchors), dim=1)
    all_labels = torch.cat(labels, dim=1)

    x = torch.cat(logits, dim=1).detach()
    is_own = F.one_hot(all_labels.clamp(min=0), 4)[..., :3].bool()
    ce = torch.where(is_own, F.softplus(-x), F.softplus(x))
    if alpha != -1.0:
        alpha = torch.tensor(alpha)
        ce = torch.where(is_own, alpha * ce, (1 - alpha) * ce)
    arguments = torch.cat(anchors), 3, batch_size, threshold, one_to_three
    for image_ce, image_labels, image_mined in zip(ce, all_labels, mined, strict=True):
        expected = reference_mining(image_ce.sum(dim=1), image_labels, *arguments)
        assert (image_mined >= 0).nonzero().flatten().tolist() == expected.sort().values.tolist()
        assert (image_mined[expected] == image_labels[expected]).all()


@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_loss_and_gradient_are_the_cross_entropy_of_the_mined(kernel):
    sizes = (60, 20)
    logits, labels = make_batch(level_sizes=sizes)
    anchors = make_anchors(0, sizes)
    loss = OHEM(batch_size=10, nms_thresh=0.5, kernel=kernel)
    total, count = loss(logits, labels, anchors)
    mined = loss.mine(logits, labels, anchors)
    assert count.item() == sum((y >= 0).sum().item() for y in mined) == 20
    expected, _ = CrossEntropy(kernel=kernel)(logits, mined)
    torch.testing.assert_close(total, expected, rtol=0, atol=0)
    for y, gradient in zip(mined, torch.autograd.grad(total, logits), strict=True):
        assert (gradient[y == -1] == 0).all() and (gradient[y >= 0] != 0).all()


@pytest.mark.parametrize("one_to_three", [False, True])
@pytest.mark.parametrize("case", ["no images", "no anchors", "all ignored", "all background"])
def test_corners(case, one_to_three):
    sizes = (0,) if case == "no anchors" else (30,)
    logits, labels = make_batch(num_images=0 if case == "no images" else 2, level_sizes=sizes)
    if case.startswith("all"):
        labels = [torch.full_like(y, -1 if case == "all ignored" else 5) for y in labels]
    anchors = make_anchors(0, sizes)
    loss = OHEM(batch_size=4, nms_thresh=1.0, one_to_three=one_to_three)
    total, count = loss(logits, labels, anchors)
    (gradient,) = torch.autograd.grad(total, logits)
    if case == "all background" and not one_to_three:
        assert count == 8 and total > 0 and (gradient != 0).any(dim=-1).sum() == 8
    else:
        assert count == 0 and total == 0 and (gradient == 0).all()


def test_wrong_values_are_errors():
    for options, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 3, "one_to_three": True}, "batch_size is 3; OHEM needs 1, and 4 for"),
        ({"batch_size": 8, "nms_thresh": 50}, "nms_thresh"),
    ):
        with pytest.raises(ValueError, match=message):
            OHEM(**{"nms_thresh": 0.5, **options})
    with pytest.raises(ValueError, match=r"anchors \(R_l, 4\)"):
        OHEM(batch_size=8, nms_thresh=0.5)(*make_batch((30,)), [torch.zeros(29, 4)])
