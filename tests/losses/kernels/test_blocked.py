"""What only the blocked kernel and its helpers do."""

import multiprocessing

import pytest
import torch

from focal_retina.losses.kernels import Focal, FocalStar, blocked
from focal_retina.losses.kernels.memory import empty_gradient
from focal_retina.losses.kernels.threads import on_each_thread


@pytest.mark.parametrize("formula", [Focal(2.0), Focal(0.7), FocalStar(2.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_that_overflows_is_computed_again(formula, dtype):
    # One logit beyond exp's range among many; without it the fast softplus serves all.
    x = torch.linspace(-9, 9, 600).view(1, 60, 10).to(dtype)
    y = torch.full((1, 60), 10)
    (usual,), (moderate,) = zip(blocked.loss_and_gradients([x], [y], [True], formula, 1.0, 1.0))
    moderate = moderate[0].clone()
    x[0, 30, 5] = 1000
    (total,), (gradient,) = zip(blocked.loss_and_gradients([x], [y], [True], formula, 1.0, 1.0))
    others = torch.ones_like(x, dtype=torch.bool)
    others[0, 30, 5] = False
    torch.testing.assert_close(gradient[0][others], moderate[others])
    assert total - usual == pytest.approx(1000, rel=1e-2)


def test_each_thread_runs_serially_and_without_autograd():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = on_each_thread(lambda: (torch.get_num_threads(), torch.is_grad_enabled()))
        assert seen == [(1, False)] * 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_pass_on_errors():
    def fail():
        raise ValueError("from the work")

    with pytest.raises(ValueError, match="from the work"):
        on_each_thread(fail)


def _loss_in_child(queue):
    torch.set_num_threads(2)
    x, y = torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.int64)
    queue.put(blocked.loss_and_gradients([x], [y], [False], Focal(0.0), 1.0, 1.0)[0].item())


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
def test_a_forked_child_starts_its_own_threads():
    on_each_thread(lambda: None)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_loss_in_child, args=(queue,), daemon=True)
    child.start()
    # Eight logits, each at log 2.
    assert queue.get(timeout=60) == pytest.approx(8 * 0.6931472)
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("num_anchors", [3, 300_000])
def test_empty_gradient_has_the_layout_of_the_logits(num_anchors):
    logits = torch.zeros(2, 7, num_anchors).transpose(1, 2)
    gradient = empty_gradient(logits).fill_(1)
    assert gradient.stride() == logits.stride()
    assert gradient.dtype == logits.dtype
    assert (gradient == 1).all()
