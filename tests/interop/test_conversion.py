"""What is refused, and what the report tells."""

import contextlib

import numpy as np
import pytest
import torch
from converted import build_detector, from_detectron2, to_detectron2, with_keys
from foreign_models import K, Mmdet, Odtk, detectron_blobs, randomize
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.interop import ADAPTERS
from focal_retina.interop.convert import convert

DETECTRON2 = ADAPTERS["detectron2"]


@pytest.fixture(scope="module")
def mmdet():
    return randomize(Mmdet()).state_dict()


@pytest.fixture(scope="module")
def ours(mmdet):
    return to_detectron2(mmdet, "mmdet", K)


def test_class_and_anchor_counts_have_to_agree(mmdet):
    """45 channels are 9 x 5 and 15 x 3, 36 of boxes are 9 anchors."""
    mmdet_format = ADAPTERS["mmdet"]
    with pytest.raises(ValueError, match="9 anchors, and not the 15"):
        convert(mmdet, mmdet_format, DETECTRON2, mmdet_format.spec_of(3, 15))
    with pytest.raises(ValueError, match="5 classes, and not the 80"):
        to_detectron2(mmdet, "mmdet")
    classes = {"CLASSES": ("a", "b", "c")}
    for meta in (classes, {"dataset_meta": classes}):  # the second is mmdetection 3's
        with pytest.raises(ValueError, match="of 3 classes, and not the 5"):
            to_detectron2({"meta": meta, "state_dict": mmdet}, "mmdet", K)


def test_a_file_of_something_else(mmdet, ours):
    odtk = {"classes": K, "ratios": [1.0], "scales": [4.0, 5.0], "state_dict": {}}
    # v1 and v2 of torchvision have the same names, and differ in what P6 is computed from.
    v2 = from_detectron2(ours, "torchvision-v1").tensors
    for name, data, message in [
        ("odtk", odtk, "2 anchors, and not the 9"),
        ("odtk", {**odtk, "angles": [0.0]}, "rotated"),
        ("odtk", mmdet, "no RetinaNet of odtk"),
        ("torchvision-v1", v2, r"p6.weight is .* \[32, 512, 3, 3\], and not float \[32, 32"),
    ]:
        with pytest.raises(ValueError, match=message):
            to_detectron2(data, name, K)


def test_unused_and_missing_tensors_are_listed(mmdet):
    tensors = dict(mmdet)
    tensors["extra.weight"] = torch.zeros(3)
    del tensors["neck.fpn_convs.4.conv.bias"], tensors["backbone.layer3.1.bn2.running_var"]
    conversion = to_detectron2(tensors, "mmdet", K)
    assert conversion.unused == ["extra.weight"] and not conversion.is_complete
    assert sorted(conversion.missing) == [
        "backbone.bottom_up.res4.1.conv2.norm.running_var",
        "backbone.top_block.p7.bias",
    ]


JUNK = [None, "text", b"", 3.5, [], ["a"], {1: 2}, torch.ones(2, 3), torch.tensor(1), np.ones(0)]


@given(st.data())
def test_any_contents_are_converted_or_one_kind_of_error(mmdet, ours, data):
    """A list in the place of a tensor, another shape, keys that are no text, foreign metadata."""
    odtk = {"classes": K, "ratios": [1.0], "scales": [4.0], "state_dict": mmdet}
    contents = {"mmdet": {"meta": {"CLASSES": ["a"] * K}, "state_dict": mmdet}, "odtk": odtk}
    contents["torchvision-v2"] = {"model": from_detectron2(ours, "torchvision-v2").tensors}
    name = data.draw(st.sampled_from(sorted(contents)))
    changed = dict(contents[name])
    inner = data.draw(st.sampled_from(sorted(changed)))
    junk = data.draw(st.sampled_from(JUNK))
    if inner in ("state_dict", "model") and data.draw(st.booleans()):
        key = data.draw(st.sampled_from([1, None, "x", *sorted(changed[inner])]))
        changed[inner] = {**changed[inner], key: junk}
    else:
        changed[inner] = junk
    with contextlib.suppress(ValueError):
        from_detectron2(to_detectron2(changed, name, K), "detectron")


def test_what_the_target_computes_otherwise_is_listed(ours):
    differences = from_detectron2(ours, "torchvision-v2").differs
    assert differences[:2] == [
        "MODEL.RETINANET.NORM: '' here, 'GN' in torchvision-v2",
        "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU: False here, True in torchvision-v2",
    ]
    assert len(differences) == 3 and differences[2].startswith("anchors: up to ")
    detectron = to_detectron2({"blobs": detectron_blobs()}, "detectron", K)
    differences = from_detectron2(detectron, "mmdet").differs
    assert any("STRIDE_IN_1X1: True here, False" in line for line in differences)


def test_a_bias_before_a_norm_is_no_zero():
    """Detectron2's subnets have it, mmdetection's do not: group norm does not undo it."""
    conversion = to_detectron2(randomize(Mmdet(head_norm=True)).state_dict(), "mmdet", K)
    assert from_detectron2(conversion, "mmdet").is_complete
    conversion.tensors["head.cls_subnet.3.bias"][7] = 0.5
    assert from_detectron2(conversion, "mmdet").unused == ["head.cls_subnet.3.bias"]


def test_weights_in_channels_last_memory(mmdet, ours):
    """As those of a model that was trained on a CPU."""
    last = torch.channels_last
    moved = {k: v.to(memory_format=last) if v.dim() == 4 else v for k, v in mmdet.items()}
    converted = to_detectron2(moved, "mmdet", K)
    for name, tensor in ours.tensors.items():
        assert torch.equal(converted.tensors[name], tensor), name


def test_box_coder_weights_are_folded(ours):
    weights = (10.0, 10.0, 5.0, 5.0)
    weighted = with_keys(ours, "MODEL.RETINANET.BBOX_REG_WEIGHTS", weights)
    back = from_detectron2(weighted, "mmdet")
    expected = from_detectron2(ours, "mmdet").tensors["bbox_head.retina_reg.bias"].view(-1, 4)
    actual = back.tensors["bbox_head.retina_reg.bias"].view(-1, 4)
    torch.testing.assert_close(actual, expected / torch.tensor(weights))
    assert back.is_complete


def test_a_pixel_mean_that_cannot_be_set():
    conversion = to_detectron2({"state_dict": randomize(Odtk()).state_dict()}, "odtk", K)
    changed = with_keys(conversion, "MODEL.PIXEL_MEAN", [120.0, 120.0, 120.0])
    assert any("pixel mean" in line for line in from_detectron2(changed, "odtk").differs)
    lines = from_detectron2(changed, "torchvision-v2").changed
    assert any("pixel mean" in line and "set it there" in line for line in lines)


def test_detectron2s_own_state_beside_the_weights_is_left_out(ours):
    data = {"model": {**ours.tensors, "pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 5}
    again = convert(data, DETECTRON2, DETECTRON2, ours.spec)
    assert again.is_complete
    assert again.changed == ["left out 1 tensors of no use, such as pixel_mean"]
    assert again.tensors.keys() == ours.tensors.keys()
    build_detector(again)
