"""Anchors of other libraries, against what those publish of their computation."""

import math

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from focal_retina.interop import ADAPTERS
from focal_retina.interop.spec import STRIDES
from focal_retina.interop.spec import first_boxes as first_boxes_of

RATIOS = (0.5, 1.0, 2.0)


def first_boxes(name):
    return list(first_boxes_of(ADAPTERS[name].spec_of(80, 9, RATIOS)))


def test_torchvision():
    their_generator = _default_anchorgen()
    features = [torch.zeros(1, 1, 256 // s, 256 // s) for s in STRIDES]
    theirs = their_generator(ImageList(torch.zeros(1, 3, 256, 256), [(256, 256)]), features)[0]
    first_of_level = np.cumsum([0] + [9 * f.shape[2] * f.shape[3] for f in features[:-1]])
    for start, ours in zip(first_of_level, first_boxes("torchvision-v1"), strict=True):
        expected = theirs[start : start + 9].view(3, 3, 4).transpose(0, 1).flatten(0, 1)
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", ["mmdet", "mmdet-caffe"])
def test_mmdetection_has_detectron2s_own(name):
    """``AnchorGenerator`` with center_offset 0: width stride x scale / sqrt(ratio)."""
    for stride, ours in zip(STRIDES, first_boxes(name), strict=True):
        sides = [
            (stride * 4 * 2 ** (i / 3) / math.sqrt(r), stride * 4 * 2 ** (i / 3) * math.sqrt(r))
            for i in range(3)
            for r in RATIOS
        ]
        half = torch.tensor(sides) / 2
        torch.testing.assert_close(ours, torch.cat((-half, half), dim=1))


def test_detectron():
    """A cell of stride 8 and ratio .5 is 11 x 6 (11.3 and 5.5 rounded), its centre 3.5 + .5."""
    boxes = first_boxes("detectron")
    torch.testing.assert_close(boxes[0][0], torch.tensor([-18.0, -8.0, 26.0, 16.0]))
    for stride, ours in zip(STRIDES, boxes, strict=True):
        centre = (stride - 1) / 2
        expected = []
        for scale in (4 * 2 ** (i / 3) for i in range(3)):
            for ratio in RATIOS:
                width = np.round(np.sqrt(stride * stride / ratio))
                sides = np.array([width, np.round(width * ratio)]) * scale
                # The last pixel is within: an edge is one further
                low, high = centre - 0.5 * (sides - 1), centre + 0.5 * (sides - 1) + 1
                expected.append([*low, *high])
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_odtk_before_0_2_1():
    """Sides of a cell rounded, then scaled; the last pixel is within. Detectron's anchors."""
    for stride, ours in zip(STRIDES, first_boxes("odtk-0.2.0"), strict=True):
        expected = []
        for scale in (4 * 2 ** (i / 3) for i in range(3)):
            for ratio in RATIOS:
                width = np.round(math.sqrt(stride * stride / ratio))
                sides = np.array([width, np.round(width * ratio)]) * scale
                last = 0.5 * (stride + sides) - 1
                expected.append([*(0.5 * (stride - sides)), *(last + 1)])
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_odtk():
    """The anchor of stride 8, scale 4, ratio 1 is [-12, 20], and with its last pixel [-12, 21]."""
    boxes = first_boxes("odtk")
    torch.testing.assert_close(boxes[0][1], torch.tensor([-12.0, -12.0, 21.0, 21.0]))
    for stride, ours in zip(STRIDES, boxes, strict=True):
        expected = []
        for scale in (4 * 2 ** (i / 3) for i in range(3)):
            for ratio in RATIOS:
                width = math.sqrt(stride * stride / ratio)
                sides = np.array([width, width * ratio]) * scale
                expected.append([*(0.5 * (stride - sides)), *(0.5 * (stride + sides) + 1)])
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)
