"""Classes and anchors of the output channels."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.interop import ADAPTERS
from focal_retina.interop.spec import BOX, CLS, make_spec

TORCHVISION = ADAPTERS["torchvision-v1"]


def test_torchvisions_rows():
    assert TORCHVISION.class_rows(91, 80)[:12] == [*range(1, 12), 13]  # no 12
    assert TORCHVISION.class_rows(91, 80)[-1] == 90
    assert TORCHVISION.class_rows(91, 90) == list(range(1, 91))
    assert TORCHVISION.class_rows(4, 3) == [1, 2, 3]
    assert TORCHVISION.class_rows(3, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="4 classes, and not the 3"):
        ADAPTERS["mmdet"].class_rows(4, 3)


@settings(deadline=None, max_examples=30)
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
