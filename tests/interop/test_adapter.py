"""What an adapter states: anchors, against what the libraries publish of their computation
(torchvision's own runs in test_torchvision_parity.py); classes and anchors of output channels."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.interop import ADAPTERS
from focal_retina.interop.spec import BOX, CLS, STRIDES, first_boxes, make_spec

TORCHVISION = ADAPTERS["torchvision-v1"]


def sides_of(stride, *, rounded):
    """Widths and heights (9, 2): those of a cell of one stride, of each ratio, by each scale."""
    ratios = np.array([0.5, 1.0, 2.0])
    widths = np.sqrt(stride * stride / ratios)
    widths = np.round(widths) if rounded else widths
    heights = np.round(widths * ratios) if rounded else widths * ratios
    scales = 4 * 2 ** (np.arange(3) / 3)
    return (scales[:, None, None] * np.stack([widths, heights], axis=1)).reshape(9, 2)


def mmdetection(stride):
    """``AnchorGenerator`` with center_offset 0: Detectron2's own."""
    half = sides_of(stride, rounded=False) / 2
    return -half, half


def detectron(stride):
    """``generate_anchors``. The last pixel is within: an edge is one further."""
    centre, half = (stride - 1) / 2, (sides_of(stride, rounded=True) - 1) / 2
    return centre - half, centre + half + 1


def odtk_before_0_2_1(stride):
    sides = sides_of(stride, rounded=True)
    return 0.5 * (stride - sides), 0.5 * (stride + sides) - 1 + 1


def odtk(stride):
    sides = sides_of(stride, rounded=False)
    return 0.5 * (stride - sides), 0.5 * (stride + sides) + 1


@pytest.mark.parametrize(
    "name, reference, known",
    [
        ("mmdet", mmdetection, {}),
        ("mmdet-caffe", mmdetection, {}),
        # The cell of stride 8 and ratio .5 is 11 x 6 (11.3 and 5.5 rounded), its centre 3.5 + .5.
        ("detectron", detectron, {0: [-18.0, -8.0, 26.0, 16.0]}),
        ("odtk-0.2.0", odtk_before_0_2_1, {}),
        # Of ratio 1 and scale 4 it is [-12, 20], and with its last pixel [-12, 21].
        ("odtk", odtk, {1: [-12.0, -12.0, 21.0, 21.0]}),
    ],
)
def test_edges(name, reference, known):
    boxes = first_boxes(ADAPTERS[name].spec_of(80, 9, (0.5, 1.0, 2.0)))
    expected = [np.concatenate(reference(stride), axis=1) for stride in STRIDES]
    np.testing.assert_allclose(boxes.numpy(), expected, atol=1e-4)
    for anchor, box in known.items():
        assert boxes[0, anchor].tolist() == box


def test_torchvisions_rows():
    assert TORCHVISION.class_rows(91, 80)[:12] == [*range(1, 12), 13]  # no 12
    assert TORCHVISION.class_rows(91, 80)[-1] == 90
    assert TORCHVISION.class_rows(91, 90) == list(range(1, 91))
    assert TORCHVISION.class_rows(4, 3) == [1, 2, 3]
    assert TORCHVISION.class_rows(3, 3) == [0, 1, 2]


@given(num_sizes=st.integers(1, 4), num_ratios=st.integers(1, 4))
def test_each_class_and_anchor_has_the_librarys_channel(num_sizes, num_ratios):
    """Detectron2 counts a size's ratios first, torchvision and mmdetection a ratio's sizes."""
    generator, num_rows = "MODEL.ANCHOR_GENERATOR", 4
    spec = make_spec(
        {
            f"{generator}.SIZES": [[1.0] * num_sizes],
            f"{generator}.ASPECT_RATIOS": [[1.0] * num_ratios],
            "MODEL.RETINANET.NUM_CLASSES": num_rows - 1,
        }
    )
    pairs = [(size, ratio) for size in range(num_sizes) for ratio in range(num_ratios)]
    for sizes_vary_fastest, anchors in [
        (False, [size * num_ratios + ratio for size, ratio in pairs]),
        (True, [ratio * num_sizes + size for size, ratio in pairs]),
    ]:
        library = replace(TORCHVISION, sizes_vary_fastest=sizes_vary_fastest)
        found = library.output_channels(spec, num_rows)
        assert found[CLS].tolist() == [num_rows * x + row for x in anchors for row in (1, 2, 3)]
        assert found[BOX].tolist() == [4 * x + i for x in anchors for i in range(4)]
