"""A subnet on patches against the same subnet on whole feature maps."""

from itertools import chain

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from focal_retina.modeling import FocalRetinaNetHead
from focal_retina.modeling.patches import can_run_on_patches, run_on_patches

CHANNELS = 3
SIZES = [(40, 56), (20, 28), (3, 5)]  # of the levels
CELLS = sum(h * w for h, w in SIZES)


def make_layers(depth):
    hidden = [[nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()] for _ in range(depth)]
    return [*chain.from_iterable(hidden), nn.Conv2d(CHANNELS, 8, 3, padding=1)]


def make_features(images=2):
    return [torch.randn(images, CHANNELS, *size, requires_grad=True) for size in SIZES]


def gradients(outputs, inputs):
    weights = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    return torch.autograd.grad((outputs * weights).sum(), inputs, allow_unused=True)


@given(seed=st.integers(0, 2**31), depth=st.integers(0, 3), count=st.integers(0, 3))
def test_outputs_and_gradients_equal_those_of_whole_maps(seed, depth, count):
    torch.manual_seed(seed)
    layers, features = make_layers(depth), make_features()
    image_idxs = torch.randint(2, (count,))
    # Corners and borders of maps are where padding matters
    chosen = torch.tensor([0, 55, 39 * 56, 40 * 56 - 1, 40 * 56, CELLS - 1, CELLS - 8, 1100, 1101])
    cell_idxs = chosen[torch.randint(len(chosen), (count,))]
    actual = run_on_patches(layers, features, image_idxs, cell_idxs, torch.zeros_like(cell_idxs))
    dense = [nn.Sequential(*layers)(x).flatten(2).transpose(1, 2) for x in features]
    expected = torch.cat(dense, dim=1)[image_idxs, cell_idxs]
    torch.testing.assert_close(actual, expected)

    inputs = [*features, *nn.Sequential(*layers).parameters()]
    for mine, theirs in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_gives_way_to_whole_maps_where_many_cells_are_wanted():
    cell_idxs = torch.arange(CELLS)
    wanted = (torch.zeros_like(cell_idxs), cell_idxs, cell_idxs)
    assert run_on_patches(make_layers(2), make_features(), *wanted) is None


def test_which_layers_can_run_on_patches():
    conv = {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1}
    assert can_run_on_patches([nn.Conv2d(**conv), nn.ReLU()])
    assert not can_run_on_patches([nn.Conv2d(**conv, padding_mode="reflect")])
    for other in ({"stride": 2}, {"padding": 0}, {"kernel_size": 1}, {"groups": 2}):
        assert not can_run_on_patches([nn.ReLU(), nn.Conv2d(**{**conv, **other})])
    assert not can_run_on_patches([nn.GroupNorm(1, 2)])


class DoublingHead(FocalRetinaNetHead):
    def forward(self, features):
        logits, deltas = super().forward(features)
        return logits, [2 * x for x in deltas]


@pytest.mark.parametrize(
    "cls, on_patches",
    [(FocalRetinaNetHead, True), (FocalRetinaNetHead, False), (DoublingHead, True)],
)
def test_head_predicts_positives_as_it_predicts_all_anchors(cls, on_patches):
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=CHANNELS, stride=8)] * len(SIZES)
    head = cls(input_shape=shapes, num_classes=2, num_anchors=3, conv_dims=[CHANNELS, CHANNELS])
    features = make_features()
    if not on_patches:  # an output depends on more than the cells next to it
        head.bbox_subnet.insert(1, nn.GroupNorm(1, CHANNELS))
    image_idxs = torch.tensor([0, 0, 0, 1])
    anchor_idxs = torch.tensor([17, 18, 1500, 3 * CELLS - 2])
    logits, deltas = head.predict_positives(features, image_idxs, anchor_idxs, anchor_idxs)
    dense_logits, dense_deltas = head(features)
    torch.testing.assert_close(logits, dense_logits)
    rows = [permute_to_N_HWA_K(x, 4) for x in dense_deltas]
    expected = torch.cat(rows, dim=1)[image_idxs, anchor_idxs]
    assert expected.abs().min() > 0
    torch.testing.assert_close(deltas, expected)
