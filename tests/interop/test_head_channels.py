"""Classes and anchors of the output channels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.interop.spec import BOX, CLS, class_rows, make_spec, output_channels


def test_torchvisions_rows():
    assert class_rows(91, 80, has_background_row=True)[:12] == [*range(1, 12), 13]  # no 12
    assert class_rows(91, 80, has_background_row=True)[-1] == 90
    assert class_rows(91, 90, has_background_row=True) == list(range(1, 91))
    assert class_rows(4, 3, has_background_row=True) == [1, 2, 3]
    assert class_rows(3, 3, has_background_row=True) == [0, 1, 2]
    with pytest.raises(ValueError, match="4 classes an anchor, and not the 3"):
        class_rows(4, 3, has_background_row=False)


@settings(deadline=None, max_examples=30)
@given(num_sizes=st.integers(1, 4), num_ratios=st.integers(1, 4))
def test_each_class_and_anchor_has_the_librarys_channel(num_sizes, num_ratios):
    """Detectron2 counts a size's ratios first, torchvision and mmdetection a ratio's sizes."""
    sizes, ratios = [[1.0] * num_sizes], [[1.0] * num_ratios]
    generator = "MODEL.ANCHOR_GENERATOR"
    spec = make_spec({f"{generator}.SIZES": sizes, f"{generator}.ASPECT_RATIOS": ratios})
    rows, num_rows = [1, 3], 5
    triples = [(s, r, row) for s in range(num_sizes) for r in range(num_ratios) for row in rows]
    expected = {
        False: [(s * num_ratios + r) * num_rows + row for s, r, row in triples],
        True: [(r * num_sizes + s) * num_rows + row for s, r, row in triples],
    }
    for order, channels in expected.items():
        found = output_channels(spec, rows, num_rows, sizes_vary_fastest=order)
        assert found[CLS].tolist() == channels
        assert found[BOX][::4].tolist() == [4 * (x // num_rows) for x in channels[::2]]
