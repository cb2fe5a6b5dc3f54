"""The Triton kernel against float64 autograd: on a GPU where there is one, else interpreted.

Triton decides at import whether it interprets, so that one test runs this file once more in a
process of its own, where the variable is set.
"""

import os

import pytest
import torch
from helpers import make_dense_batch, python, reference_loss_sum

from focal_retina.losses.ops import choose_kernel, dense_loss_sum

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float16: 2 * 2**-11 + 2**-10,
    # The interpreter cuts where a GPU rounds, twice.
    torch.bfloat16: 2 * 2**-8 + 2 * 2**-7,
}
FOCAL = ("focal", 2.0, 0.0)
FORMULAS = [("focal", 0.0, 0.0), ("focal", 0.5, 0.0), FOCAL, ("focal_star", 2.0, 1.0)]


def on_device(test):
    if INTERPRETED:
        return test
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.gpu(skip(test))


@pytest.mark.skipif(INTERPRETED, reason="this is the run that it starts")
def test_through_the_interpreter():
    run = python("-m", "pytest", "-q", "-n0", "-pno:cacheprovider", __file__, TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def make_batch(num_classes, dtype, sizes):
    logits, labels = make_dense_batch(sizes, num_classes, background=0.5)
    logits[0].data[0, :4, 0] = torch.tensor([100.0, -100.0, 1e4, -1e4])
    return [x.detach().to(DEVICE, dtype) for x in logits], [y.to(DEVICE) for y in labels]


def loss_and_gradients(logits, labels, formula=FOCAL, weights=(0.25, 0.75)):
    # The strides must survive: a clone of a dense tensor keeps them.
    logits = [x.detach().clone().requires_grad_() for x in logits]
    total = dense_loss_sum(logits, labels, formula, weights, kernel="triton")
    (total / 3).backward()
    return total.detach(), [x.grad for x in logits]


def assert_equal_to_reference(logits, labels, formula=FOCAL, weights=(0.25, 0.75)):
    total, gradients = loss_and_gradients(logits, labels, formula, weights)
    truth = [x.detach().double().requires_grad_() for x in logits]
    expected = reference_loss_sum(truth, labels, formula, *weights)
    (expected / 3).backward()
    dtype = logits[0].dtype
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0, check_device=False)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": 2 * torch.finfo(dtype).tiny}
    for x, gradient, true in zip(logits, gradients, truth, strict=True):
        assert gradient.dtype == dtype and gradient.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(gradient.double(), true.grad, **tolerance)


@on_device
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("num_classes", [1, 80, 1203])
def test_every_dtype_and_class_count(num_classes, dtype):
    # Levels that end inside a block, one of several blocks, and an empty one.
    logits, labels = make_batch(num_classes, dtype, sizes=[2500 // num_classes + 5, 7, 0])
    assert_equal_to_reference(logits, labels)


@on_device
@pytest.mark.parametrize("formula", FORMULAS, ids=str)
@pytest.mark.parametrize("per_class", [False, True])
def test_every_formula_and_weights_of_classes(formula, per_class):
    weights = (torch.rand(80, device=DEVICE), torch.rand(80, device=DEVICE))
    batch = make_batch(80, torch.float32, sizes=[60, 7])
    assert_equal_to_reference(*batch, formula, weights if per_class else (0.25, 0.75))


@on_device
@pytest.mark.parametrize("dims", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_strides(dims):
    logits, labels = make_batch(5, torch.float32, sizes=[30, 9])
    inverse = torch.tensor(dims).argsort().tolist()
    logits = [x.permute(dims).contiguous().permute(inverse) for x in logits]
    assert_equal_to_reference(logits, labels)


@on_device
def test_ignored_anchors_may_hold_anything():
    logits, labels = make_batch(5, torch.float32, sizes=[30])
    logits[0][labels[0] == -1] = float("nan")
    total, (gradient,) = loss_and_gradients(logits, labels)
    assert total.isfinite()
    assert (gradient[labels[0] == -1] == 0).all()


@on_device
def test_the_sum_is_the_same_every_time():
    logits, labels = make_batch(80, torch.float32, sizes=[500])
    totals = [loss_and_gradients(logits, labels)[0] for _ in range(3)]
    assert len({total.item() for total in totals}) == 1


@on_device
def test_fp16_keeps_the_gradient_of_easy_negatives():
    # At x = -8 it is about 1e-10 before a loss scaler multiplies it: zero in fp16.
    x = torch.full((1, 4, 3), -8.0, dtype=torch.float16, device=DEVICE, requires_grad=True)
    labels = [torch.full((1, 4), 3, device=DEVICE)]
    truth = x.detach().double().requires_grad_()
    scale = 2.0**20
    normalizer = torch.tensor(1000.0, device=DEVICE)
    (scale * dense_loss_sum([x], labels, FOCAL, (1.0, 1.0), "triton", normalizer)).backward()
    (scale * reference_loss_sum([truth], labels, FOCAL) / normalizer).backward()
    torch.testing.assert_close(x.grad.double(), truth.grad, rtol=0.05, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_is_what_auto_chooses_and_a_cuda_graph_captures_it():
    logits, labels = make_batch(80, torch.float32, sizes=[500, 100])
    assert choose_kernel("auto", logits[0]) == "triton"
    expected, expected_gradients = loss_and_gradients(logits, labels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total, gradients = loss_and_gradients(logits, labels)
    graph.replay()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.skipif(INTERPRETED, reason="compiled, not interpreted")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("element", ["fp32", "bf16", "fp16"])
def test_compiles_for_cuda_and_loads_wide(element, capability):
    """Compiled to PTX, which needs no GPU: types that fit, and 16 bytes a load and a store."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from focal_retina.losses.ops import triton_cuda

    kernel, levels = triton_cuda._loss_kernel, 5
    constants = {
        "num_classes": 80,
        "formula": triton_cuda._focal,
        "gamma": 2.0,
        "beta": 0.0,
        "scale": 1.0,
        "per_class": False,
        "group": 16,
        "block": triton_cuda._BLOCK,
    }
    pointers = {"labels": "*i64", "sums": "*fp32", "weights": "*fp32"}
    tuples = {"logits": (f"*{element}",) * levels, "gradients": (f"*{element}",) * levels}
    signature = {"nums_anchors": ("i32",) * levels, "labels_stride": "i32", **pointers, **tuples}
    signature |= dict.fromkeys(constants, "constexpr")
    position = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = [position[name] for name in pointers]
    aligned += [(*position[name], level) for name in tuples for level in range(levels)]
    source = ASTSource(
        fn=kernel,
        signature={name: signature[name] for name in kernel.arg_names},
        constexprs={position[name]: value for name, value in constants.items()},
        attrs={argument: [["tt.divisibility", 16]] for argument in aligned},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
    assert "st.global.v4.b32" in ptx and "ld.global.v4.b32" in ptx
