"""The loss operator: its numbers on the CPU, and how it behaves in autograd."""

import pytest
import torch
from helpers import make_dense_batch, python, reference_loss_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.losses import FocalLoss, ops

FOCAL = ("focal", 2.0, 0.0)
LAYOUTS = {
    "row_major": lambda x: x,
    "class_major": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "anchor_major": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "slice_of_more_classes": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "slice_of_more_anchors": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


def make_batch(sizes=(40, 9, 1), num_classes=7, **options):
    return make_dense_batch(sizes, num_classes, background=0.5, **options)


def loss_of(logits, labels, formula=FOCAL, weights=(1.0, 1.0), kernel="numba"):
    return ops.dense_loss_sum(logits, labels, formula, weights, kernel)


def assert_gradients_close(logits, truth, rtol=1e-5):
    for x, expected in zip(logits, truth, strict=True):
        assert x.grad.dtype == x.dtype
        # Below the smallest normal number, digits go missing one by one.
        tolerance = {"rtol": rtol, "atol": 2 * torch.finfo(x.dtype).tiny}
        torch.testing.assert_close(x.grad.double(), expected.grad, **tolerance)


def cases(tolerances, formulas, num_classes):
    """Batches, formulas and weights for :func:`assert_equals_float64_autograd`; ``tolerances``:
    relative errors of a gradient's elements by dtype."""
    return st.fixed_dictionaries(
        {
            "sizes": st.lists(st.integers(0, 30), min_size=1, max_size=3),
            "num_images": st.integers(0, 3),
            "num_classes": st.sampled_from(num_classes),
            "formula": formulas,
            "dtype_and_rtol": st.sampled_from(list(tolerances.items())),
            "layout": st.sampled_from(sorted(LAYOUTS)),
            "per_class": st.booleans(),
            "seed": st.integers(0, 2**31),
        }
    )


def assert_equals_float64_autograd(
    kernel, device, sizes, num_classes, formula, dtype_and_rtol, layout, per_class, **options
):
    dtype, rtol = dtype_and_rtol
    logits, labels = make_batch(sizes, num_classes, **options)
    logits[0].data[:, :4, 0] = torch.tensor([100.0, -100.0, 1e4, -1e4])[: sizes[0]]
    logits = [LAYOUTS[layout](x.detach().to(device, dtype)).requires_grad_() for x in logits]
    labels = [y.to(device) for y in labels]
    weights = tuple(torch.rand(2, num_classes, device=device)) if per_class else (0.25, 0.75)
    truth = [x.detach().double().requires_grad_() for x in logits]

    total = loss_of(logits, labels, formula, weights, kernel)
    expected = reference_loss_sum(truth, labels, formula, *weights)
    (total / 3).backward()
    (expected / 3).backward()

    assert total.shape == ()
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    close = {"rtol": 1e-6, "atol": 1e-30, "check_device": False}
    torch.testing.assert_close(total.double(), expected, **close)
    # A weight per class rounds a narrow gradient a third time.
    assert_gradients_close(logits, truth, rtol * (1.5 if per_class else 1))


# The kernel's own error in fp32, and half a unit in the last place for each of the two roundings,
# when a gradient is saved and when it is scaled, in bf16.
NUMBA_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2 * 2**-8}
FORMULAS = st.tuples(st.just("focal"), st.floats(0, 10), st.just(0.0))
FORMULAS |= st.tuples(st.just("focal_star"), st.floats(0.1, 10), st.floats(-3, 3))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cases(NUMBA_TOLERANCES, FORMULAS, num_classes=[1, 2, 5, 80]))
def test_equals_float64_autograd(case):
    assert_equals_float64_autograd("numba", "cpu", **case)


def test_equal_logits_do_not_add_up_their_rounding():
    # A head with the paper's prior initialisation: every logit is the same.
    logits = [torch.full((1, 30_000, 20), -4.5951)]
    labels = [torch.full((1, 30_000), 20)]
    expected = reference_loss_sum(logits, labels, FOCAL, 0.25, 0.75)
    total = loss_of(logits, labels, FOCAL, (0.25, 0.75))
    torch.testing.assert_close(total.double(), expected, rtol=5e-7, atol=0)


def test_blocks_and_threads_leave_no_trace():
    # More than one chunk of blocks, cut in the middle of a block.
    logits, labels = make_batch(sizes=(17_000, 3_333), num_images=1, num_classes=80)
    truth = [x.detach().double().requires_grad_() for x in logits]
    reference_loss_sum(truth, labels, FOCAL).backward()
    num_threads = torch.get_num_threads()
    totals = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            for x in logits:
                x.grad = None
            totals.append(loss_of(logits, labels))
            totals[-1].backward()
            assert torch.get_num_threads() == threads
            assert_gradients_close(logits, truth)
    finally:
        torch.set_num_threads(num_threads)
    assert len({total.item() for total in totals}) == 1


def test_an_invalid_logit_is_not_hidden():
    logits, labels = make_batch()
    logits[0].data[labels[0] >= 0] = float("nan")
    assert loss_of(logits, labels).isnan()


def test_levels_that_need_no_gradient_get_none():
    logits, labels = make_batch()
    logits[1].requires_grad_(False)
    truth = [x.detach().double().requires_grad_() for x in logits]
    loss_of(logits, labels).backward()
    reference_loss_sum(truth, labels, FOCAL).backward()
    assert logits[1].grad is None
    assert_gradients_close(logits[::2], truth[::2])


def test_backward_twice():
    logits, labels = make_batch()
    total = loss_of(logits, labels)
    (2 * total).backward(retain_graph=True)
    first = [x.grad.clone() for x in logits]
    (4 * total).backward()
    for x, gradient in zip(logits, first, strict=True):
        torch.testing.assert_close(x.grad, 3 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_second_and_forward_derivatives_are_clear_errors():
    logits, labels = make_batch()
    total = loss_of(logits, labels)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, logits, create_graph=True)
    (x,), (y,) = make_batch((8,))
    for transform in (lambda f: torch.func.jvp(f, (x,), (x,)), lambda f: torch.func.jacfwd(f)(x)):
        with pytest.raises(RuntimeError, match='no forward-mode derivative.*"plain"'):
            transform(lambda x: loss_of([x], [y]))


def test_weights_that_require_a_gradient_are_an_error():
    logits, labels = make_batch()
    with pytest.raises(ValueError, match="require a gradient"):
        loss_of(logits, labels, FOCAL, (torch.ones(7, requires_grad=True), torch.ones(7)))


def test_auto_is_the_kernel_that_can_compute_the_logits():
    for dtype in (torch.float32, torch.bfloat16):
        assert ops.choose_kernel("auto", "cpu", dtype) == "numba"
    for other in [("cpu", torch.float64), ("cpu", torch.float16), ("meta", torch.float32)]:
        assert ops.choose_kernel("auto", *other) == "plain"
        with pytest.raises(ValueError, match=r"'numba' cannot compute torch\..* on (cpu|meta)"):
            ops.choose_kernel("numba", *other)
    with pytest.raises(ValueError, match="'triton' cannot compute"):
        ops.choose_kernel("triton", "cpu", torch.float32)


def test_where_numba_is_switched_off_the_plain_form_computes():
    script = """import sys, torch
from focal_retina.losses import FocalLoss
x = torch.zeros(1, 4, 2, requires_grad=True)
FocalLoss(alpha=-1, gamma=0.0)([x], [torch.zeros(1, 4, dtype=torch.int64)])[0].backward()
assert (x.grad.abs() == 0.5).all()
assert "numba" not in sys.modules
"""
    run = python("-c", script, NUMBA_DISABLE_JIT="1")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    """With a shape of its own in every call, and under autocast."""

    def step(logits, labels):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return FocalLoss()([2 * x for x in logits], labels)[0] / 10

    # Every part of torch.compile but code generation, which needs a C++ compiler.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (40, 70):
        logits, labels = make_batch((size, 9))
        expected, total = step(logits, labels), compiled(logits, labels)
        torch.testing.assert_close(total, expected)
        of_both = [torch.autograd.grad(x, logits) for x in (total, expected)]
        torch.testing.assert_close(*of_both)


def test_operator_keeps_its_contract():
    logits, labels = make_batch()
    logits[0] = LAYOUTS["class_major"](logits[0].detach()).requires_grad_()
    arguments = [labels, torch.tensor([[0.25], [0.75]]), True, *FOCAL, "numba"]
    torch.library.opcheck(torch.ops.focal_retina.dense_loss, [logits, *arguments])
    gradients = [x.detach().clone() for x in logits]
    factor = torch.tensor(0.5)
    torch.library.opcheck(torch.ops.focal_retina.scale_gradients_, [gradients, factor, "numba"])
