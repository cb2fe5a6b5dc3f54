"""Classes and anchors of the output channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.interop.head_rows import (
    class_rows,
    count_rows,
    read_channels,
    rows_to_write,
    write_channels,
)
from focal_retina.interop.structure import AnchorSettings


def test_720_channels_are_9_x_80_or_12_x_60():
    assert count_rows(720, 36, 9) == 80
    assert count_rows(720, 48, 12) == 60
    with pytest.raises(ValueError, match=r"36 channels, which is 9 anchors .* not the 12"):
        count_rows(720, 36, 12)
    with pytest.raises(ValueError, match="80 classes an anchor, and not the 60"):
        class_rows(80, 60, has_background_row=False)
    with pytest.raises(ValueError, match="no multiple of 9"):
        count_rows(721, 36, 9)


def test_torchvisions_rows():
    assert class_rows(91, 80, has_background_row=True)[:12] == [*range(1, 12), 13]  # no 12
    assert class_rows(91, 80, has_background_row=True)[-1] == 90
    assert class_rows(91, 90, has_background_row=True) == list(range(1, 91))
    assert class_rows(4, 3, has_background_row=True) == [1, 2, 3]
    assert class_rows(3, 3, has_background_row=True) == [0, 1, 2]
    with pytest.raises(ValueError, match="4 classes an anchor, and not the 3"):
        class_rows(4, 3, has_background_row=False)


@settings(deadline=None, max_examples=30)
@given(
    num_sizes=st.integers(1, 4),
    num_ratios=st.integers(1, 4),
    num_classes=st.sampled_from([1, 2, 7, 80]),
    has_background_row=st.booleans(),
    sizes_vary_fastest=st.booleans(),
)
def test_reading_undoes_writing(
    num_sizes, num_ratios, num_classes, has_background_row, sizes_vary_fastest
):
    anchors = AnchorSettings("", ((1.0,) * num_sizes,), (1.0,) * num_ratios, 0.0)
    weight = torch.randn(anchors.per_position * num_classes, 2, 3, 3)
    num_rows = rows_to_write(num_classes, has_background_row=has_background_row)
    rows = class_rows(num_rows, num_classes, has_background_row=has_background_row)
    for tensor in (weight, weight[:, 0, 0, 0]):
        written = write_channels(
            tensor, anchors, rows, num_rows, sizes_vary_fastest=sizes_vary_fastest
        )
        assert len(written) == anchors.per_position * num_rows
        read = read_channels(written, anchors, rows, sizes_vary_fastest=sizes_vary_fastest)
        assert torch.equal(read, tensor)


def test_order_of_anchors():
    """Two sizes and three ratios: torchvision counts a ratio's sizes first, Detectron2 not."""
    anchors = AnchorSettings("", ((1.0, 2.0),), (0.5, 1.0, 2.0), 0.0)
    theirs = torch.tensor([10 * size + ratio for ratio in range(3) for size in range(2)])
    ours = read_channels(theirs, anchors, [0], sizes_vary_fastest=True)
    assert ours.tolist() == [10 * size + ratio for size in range(2) for ratio in range(3)]
