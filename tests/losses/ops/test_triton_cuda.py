"""The Triton kernel against float64 autograd: on a GPU where there is one, else interpreted.

Triton decides at import whether it interprets, so that one test runs this file once more in a
process of its own, where the variable is set.
"""

import os

import pytest
import torch
from helpers import python, reference_loss_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import FOCAL, assert_equals_float64_autograd, cases, loss_of, make_batch

from focal_retina.losses.ops import choose_kernel, dense_loss_sum

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCES = {
    torch.float32: 1e-5,
    torch.float16: 2 * 2**-11 + 2**-10,
    # The interpreter cuts where a GPU rounds, twice.
    torch.bfloat16: 2 * 2**-8 + 2 * 2**-7,
}
# Each is a kernel that a GPU compiles.
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


def loss_and_gradients(logits, labels):
    logits = [x.detach().to(DEVICE).requires_grad_() for x in logits]
    total = loss_of(logits, [y.to(DEVICE) for y in labels], kernel="triton")
    return total.detach(), torch.autograd.grad(total, logits)


@on_device
@settings(deadline=None, max_examples=30, derandomize=True)
@given(cases(TOLERANCES, st.sampled_from(FORMULAS), num_classes=[1, 80, 1203]))
def test_equals_float64_autograd(case):
    assert_equals_float64_autograd("triton", DEVICE, **case)


@on_device
def test_levels_end_anywhere_in_the_blocks():
    case = {"num_classes": 1, "formula": FOCAL, "layout": "row_major", "per_class": False}
    case |= {"sizes": [2500, 7, 0, 4096], "dtype_and_rtol": (torch.float32, 1e-5)}
    assert_equals_float64_autograd("triton", DEVICE, **case)


@on_device
def test_ignored_anchors_may_hold_anything():
    (x,), (y,) = make_batch(sizes=[30])
    x.data[y == -1] = float("nan")
    total, (gradient,) = loss_and_gradients([x], [y])
    assert total.isfinite()
    assert (gradient[y == -1] == 0).all()


@on_device
def test_the_sum_is_the_same_every_time():
    batch = make_batch(sizes=[500], num_classes=80)
    assert len({loss_and_gradients(*batch)[0].item() for _ in range(3)}) == 1


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
    logits, labels = make_batch(sizes=[500, 100], num_classes=80)
    logits, labels = [x.cuda() for x in logits], [y.cuda() for y in labels]
    assert choose_kernel("auto", "cuda", logits[0].dtype) == "triton"
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
    constants = {"num_classes": 80, "formula": triton_cuda._focal, "gamma": 2.0, "beta": 0.0}
    constants |= {"scale": 1.0, "per_class": False, "group": 16, "block": triton_cuda._BLOCK}
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
