"""The loss operator: its numbers on the CPU, and how it behaves in autograd."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from focal_retina.losses import FocalLoss, ops

# Relative error of a gradient's element: the kernels' own in fp32, and half a unit in the last
# place for each of the two roundings, when it is saved and when it is scaled, in narrower dtypes.
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2 * 2**-8}
FOCAL = ("focal", 2.0, 0.0)
LAYOUTS = {
    "row_major": lambda x: x,
    "class_major": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "anchor_major": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "slice_of_more_classes": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "slice_of_more_anchors": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


def make_labels(sizes, num_images, num_classes, generator):
    """Half of the anchors background, the rest anything; slices of one tensor, as in the model."""
    shape = num_images, sum(sizes)
    labels = torch.randint(-1, num_classes + 1, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.5] = num_classes
    return list(labels.split(sizes, dim=1))


def make_batch(sizes=(40, 9, 1), num_images=2, num_classes=7, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = [
        (3 * torch.randn(num_images, r, num_classes, generator=generator) - 2).to(dtype)
        for r in sizes
    ]
    labels = make_labels(sizes, num_images, num_classes, generator)
    return [x.requires_grad_() for x in logits], labels


def loss_of(logits, labels, formula=FOCAL, weights=(1.0, 1.0)):
    return ops.dense_loss_sum(logits, labels, formula, weights, kernel="numba")


def assert_gradients_close(logits, truth, dtype, factor=1.0, slack=1.0):
    for x, expected in zip(logits, truth, strict=True):
        assert x.grad.dtype == dtype
        # Below the smallest normal number, digits go missing one by one.
        atol = 2 * torch.finfo(dtype).tiny
        torch.testing.assert_close(
            x.grad.double(),
            factor * expected.grad,
            rtol=slack * GRADIENT_TOLERANCE[dtype],
            atol=atol,
        )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    num_images=st.integers(0, 3),
    num_classes=st.sampled_from([1, 2, 5, 80]),
    formula=st.tuples(st.just("focal"), st.floats(0, 10), st.just(0.0))
    | st.tuples(st.just("focal_star"), st.floats(0.1, 10), st.floats(-3, 3)),
    dtype=st.sampled_from(list(GRADIENT_TOLERANCE)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    per_class=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_float64_autograd(
    reference_sum, sizes, num_images, num_classes, formula, dtype, layout, per_class, seed
):
    logits, labels = make_batch(sizes, num_images, num_classes, dtype, seed)
    logits = [LAYOUTS[layout](x.detach()).requires_grad_() for x in logits]
    weights = (torch.rand(num_classes), torch.rand(num_classes)) if per_class else (0.25, 0.75)
    truth = [x.detach().double().requires_grad_() for x in logits]

    total = loss_of(logits, labels, formula, weights)
    expected = reference_sum(truth, labels, formula, *weights)
    (total / 3).backward()
    (expected / 3).backward()

    assert total.shape == ()
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-30)
    # A weight per class rounds a narrow gradient a third time.
    assert_gradients_close(logits, truth, dtype, slack=1.5 if per_class else 1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("name, beta", [("focal", 0.0), ("focal_star", 1.0)])
def test_is_exact_and_finite_at_extreme_logits(reference_sum, name, beta, gamma):
    formula = (name, gamma or float(name == "focal_star"), beta)
    magnitudes = [0, 1e-4, 1, 17, 18, 40, 80, 87, 89, 100, 1e3, 1e4]
    values = torch.tensor([m * sign for m in magnitudes for sign in (1, -1)])
    for label in (0, 1):  # each as a positive, and as a negative
        for value in values:
            logits = [value.view(1, 1, 1).clone().requires_grad_()]
            truth = [x.detach().double().requires_grad_() for x in logits]
            labels = [torch.tensor([[label]])]
            total = loss_of(logits, labels, formula)
            expected = reference_sum(truth, labels, formula)
            total.backward()
            expected.backward()
            assert total.isfinite()
            torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-36)
            assert_gradients_close(logits, truth, torch.float32)


def test_equal_logits_do_not_add_up_their_rounding(reference_sum):
    # A head with the paper's prior initialisation: every logit is the same.
    logits = [torch.full((1, 30_000, 20), -4.5951)]
    labels = [torch.full((1, 30_000), 20)]
    expected = reference_sum(logits, labels, FOCAL, 0.25, 0.75)
    total = loss_of(logits, labels, FOCAL, (0.25, 0.75))
    torch.testing.assert_close(total.double(), expected, rtol=5e-7, atol=0)


def test_blocks_and_threads_leave_no_trace(reference_sum):
    # More than one chunk of blocks, cut in the middle of a block.
    logits, labels = make_batch(sizes=(17_000, 3_333), num_images=1, num_classes=80)
    truth = [x.detach().double().requires_grad_() for x in logits]
    reference_sum(truth, labels, FOCAL).backward()
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
            assert_gradients_close(logits, truth, torch.float32)
    finally:
        torch.set_num_threads(num_threads)
    assert len({total.item() for total in totals}) == 1


def test_an_invalid_logit_is_not_hidden():
    logits, labels = make_batch()
    logits[0].data[labels[0] >= 0] = float("nan")
    assert loss_of(logits, labels).isnan()


@pytest.mark.parametrize("dtype", list(GRADIENT_TOLERANCE), ids=str)
def test_keeps_the_bytes_of_the_logits_for_backward(dtype):
    logits, labels = make_batch(dtype=dtype)
    saved = []

    def pack(tensor):
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss_of(logits, labels)
    assert sum(saved) == sum(x.nbytes for x in logits)
    total.backward()


def test_keeps_and_computes_no_gradient_without_need():
    logits, labels = make_batch()
    with torch.no_grad():
        assert not loss_of(logits, labels).requires_grad
    arguments = [labels, False, *FOCAL, [1.0, 1.0], None, "numba"]
    total, gradients = torch.ops.focal_retina.dense_loss([x.detach() for x in logits], *arguments)
    assert gradients == []
    assert total == loss_of(logits, labels)


def test_levels_that_need_no_gradient_get_none(reference_sum):
    logits, labels = make_batch()
    logits[1].requires_grad_(False)
    truth = [x.detach().double().requires_grad_() for x in logits]
    loss_of(logits, labels).backward()
    reference_sum(truth, labels, FOCAL).backward()
    assert logits[1].grad is None
    assert_gradients_close(logits[::2], truth[::2], torch.float32)


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


def test_second_derivative_is_a_clear_error():
    logits, labels = make_batch()
    total = loss_of(logits, labels)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_weights_that_require_a_gradient_are_an_error():
    logits, labels = make_batch()
    with pytest.raises(ValueError, match="require a gradient"):
        loss_of(logits, labels, FOCAL, (torch.ones(7, requires_grad=True), torch.ones(7)))


def test_auto_is_the_kernel_that_can_compute_the_logits(monkeypatch):
    x = torch.zeros(1)
    assert ops.choose_kernel("auto", x) == ops.choose_kernel("auto", x.bfloat16()) == "numba"
    for other in (x.double(), x.half(), x.to("meta")):
        assert ops.choose_kernel("auto", other) == "plain"
        with pytest.raises(ValueError, match=r"'numba' cannot compute torch\..* on (cpu|meta)"):
            ops.choose_kernel("numba", other)
    with pytest.raises(ValueError, match="'triton' cannot compute"):
        ops.choose_kernel("triton", x)
    monkeypatch.setattr(ops, "_HAS_NUMBA", False)
    assert ops.choose_kernel("auto", x) == "plain"


def test_where_numba_is_switched_off_the_plain_form_computes():
    script = """import sys, torch
from focal_retina.losses import FocalLoss
x = torch.zeros(1, 4, 2, requires_grad=True)
FocalLoss(alpha=-1, gamma=0.0)([x], [torch.zeros(1, 4, dtype=torch.int64)])[0].backward()
assert (x.grad.abs() == 0.5).all()
assert "numba" not in sys.modules
"""
    switched_off = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", script], env=switched_off, check=True)


class Head(nn.Module):
    """A convolution, its outputs as (N, H·W·A, K), and the loss: what stands round the operator."""

    def __init__(self, num_classes=4, num_anchors=3):
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(2, num_anchors * num_classes, 3, padding=1)
        self.loss = FocalLoss()

    def forward(self, levels, labels):
        outputs = (self.conv(x).permute(0, 2, 3, 1) for x in levels)
        logits = [x.reshape(len(x), -1, self.num_classes) for x in outputs]
        return self.loss(logits, labels)[0] / 10


def make_head_batch(side=6, seed=0, num_images=2):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(num_images, 2, s, s, generator=generator) for s in (side, side // 2)]
    sizes = [3 * s * s for s in (side, side // 2)]
    return levels, make_labels(sizes, num_images, 4, generator)


def parameter_gradients(module):
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return gradients


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph_with_the_model(dynamic):
    head = Head()
    # Every part of torch.compile but code generation, which needs a C++ compiler.
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for side in (6, 8):
        levels, labels = make_head_batch(side)
        expected = head(levels, labels)
        expected.backward()
        expected_gradients = parameter_gradients(head)
        total = compiled(levels, labels)
        total.backward()
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(parameter_gradients(head), expected_gradients)


def test_operator_keeps_its_contract():
    logits, labels = make_batch()
    logits[0] = LAYOUTS["class_major"](logits[0].detach()).requires_grad_()
    arguments = [labels, True, *FOCAL, [0.25, 0.75], None, "numba"]
    torch.library.opcheck(torch.ops.focal_retina.dense_loss, [logits, *arguments])
    gradients = [x.detach().clone() for x in logits]
    factor = torch.tensor(0.5)
    torch.library.opcheck(torch.ops.focal_retina.scale_gradients_, [gradients, factor, "numba"])


def test_under_autocast():
    head, (levels, labels) = Head(), make_head_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.conv(levels[0]).dtype == torch.bfloat16
        total = head(levels, labels)
    total.backward()
    gradients = parameter_gradients(head)
    expected = head(levels, labels)
    expected.backward()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)
    torch.testing.assert_close(gradients, parameter_gradients(head), rtol=0.1, atol=0.02)


def train_one_step(rank, folder):
    """A worker of the test below: its half of the batch, and the gradients it ends with."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    head = DistributedDataParallel(Head())
    levels, labels = make_head_batch(num_images=4)
    half = slice(2 * rank, 2 * rank + 2)
    head([x[half] for x in levels], [y[half] for y in labels]).backward()
    torch.save(parameter_gradients(head), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_under_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(train_one_step, (tmp_path,), nprocs=2)
    of_workers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.manual_seed(0)
    head = Head()
    (head(*make_head_batch(num_images=4)) / 2).backward()
    expected = parameter_gradients(head)
    for gradients in of_workers:
        torch.testing.assert_close(gradients, expected)
