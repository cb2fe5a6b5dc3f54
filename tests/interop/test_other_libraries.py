"""mmdetection, ODTK and Detectron: the same outputs, and the same file on the way back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from converted import (
    build_detector,
    build_network,
    from_detectron2,
    predict,
    ratios_fastest,
    to_detectron2,
    with_keys,
)
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from foreign_models import A, K, Mmdet, Odtk, detectron_blobs, randomize, run_detectron

from focal_retina.interop import ADAPTERS
from focal_retina.interop.convert import convert

IMAGE = torch.randint(0, 256, (3, 128, 160), generator=torch.Generator().manual_seed(1)).float()


def assert_same_outputs(conversion, run, reorder):
    """``run`` is their network, from preprocessed pixels to logits and deltas per level."""
    assert conversion.is_complete, conversion.report()
    logits, deltas, _, pixels = predict(build_detector(conversion), IMAGE)
    with torch.no_grad():
        their_outputs = run(pixels)
    for ours, theirs, width in zip((logits, deltas), their_outputs, (K, 4), strict=True):
        rows = [x[0].unflatten(0, (A, width)).permute(2, 3, 0, 1).flatten(0, 2) for x in theirs]
        assert ours.std() > 0.1
        torch.testing.assert_close(ours, reorder(torch.cat(rows)), atol=1e-4, rtol=1e-5)


def assert_same_file(back, tensors):
    names = {name for name in tensors if not name.endswith("num_batches_tracked")}
    assert back.tensors.keys() == names
    for name in names:
        torch.testing.assert_close(
            back.tensors[name], torch.as_tensor(tensors[name]), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("head_norm", [False, True])
def test_mmdetection(head_norm):
    theirs = randomize(Mmdet(head_norm))
    data = {"meta": {"CLASSES": list("abcde")}, "state_dict": theirs.state_dict()}
    conversion = to_detectron2(data, "mmdet", K)
    assert_same_outputs(conversion, theirs, ratios_fastest)
    assert conversion.spec.INPUT.FORMAT == "RGB"
    assert not conversion.spec.MODEL.FOCAL_RETINA.TOP_BLOCK.RELU
    assert_same_file(from_detectron2(conversion, "mmdet"), theirs.state_dict())


@pytest.mark.parametrize("name", ["odtk", "odtk-0.2.0"])
def test_odtk(name):
    theirs = randomize(Odtk())
    data = {
        "backbone": ["ResNet18FPN"],
        "classes": K,
        "ratios": [1.0, 2.0, 0.5],
        "scales": [4 * 2 ** (i / 3) for i in range(3)],
        "state_dict": theirs.state_dict(),
    }
    conversion = to_detectron2(data, name, K)
    assert_same_outputs(conversion, theirs, lambda rows: rows)
    ratios = conversion.spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert ratios == [[1.0, 2.0, 0.5]]  # the file's, not the default
    assert any("features.fc.weight" in line for line in conversion.changed)
    earlier = {k: v for k, v in data.items() if k not in ("ratios", "scales")}
    earlier = to_detectron2(earlier, name, K)  # of a version that did not state them
    assert ratios == earlier.spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    back = from_detectron2(conversion, name)
    detector = {n: t for n, t in theirs.state_dict().items() if ".fc." not in n}
    assert_same_file(back, detector)
    Odtk().load_state_dict(back.data["state_dict"])  # strictly
    assert {k: v for k, v in back.data.items() if k != "state_dict"} == {
        k: pytest.approx(v) if k == "scales" else v for k, v in data.items() if k != "state_dict"
    }


def test_detectron():
    blobs = detectron_blobs()
    unused = {"fpn_6_w_momentum": np.zeros(3), "conv1_b": np.ones(64), "fc1000_b": np.ones(1000)}
    data = {"cfg": "", "blobs": {**blobs, **unused}}
    conversion = to_detectron2(data, "detectron", K)
    assert_same_outputs(conversion, lambda x: run_detectron(blobs, x), lambda rows: rows)
    assert conversion.spec.INPUT.FORMAT == "BGR"
    assert conversion.spec.MODEL.RESNETS.STRIDE_IN_1X1
    assert_same_file(from_detectron2(conversion, "detectron"), blobs)


def test_names_are_those_of_detectron2s_converter():
    """It knows Detectron's backbone and FPN, and not the subnets of its RetinaNet."""
    blobs = detectron_blobs()
    renamed, _ = convert_c2_detectron_names({k: torch.from_numpy(v) for k, v in blobs.items()})
    ours = to_detectron2({"blobs": blobs}, "detectron", K).tensors
    compared = {name: t for name, t in renamed.items() if name.startswith(("stem", "res", "fpn_"))}
    assert len(compared) == 53 * 3 + 6 * 2
    for name, tensor in compared.items():
        where = "" if name.startswith("fpn_") else "bottom_up."
        assert torch.equal(ours[f"backbone.{where}{name}"], tensor), name


def test_batch_norms_pixels_and_order_of_channels_for_detectron():
    """Scale and bias in the place of four tensors, BGR and std 1: another file, the same model."""
    rgb = to_detectron2(randomize(Mmdet()).state_dict(), "mmdet", K)
    detectron = from_detectron2(rgb, "detectron")
    assert not any("running" in name for name in detectron.tensors)
    source, target = ADAPTERS["detectron"], ADAPTERS["detectron2"]
    bgr = convert(detectron.data, source, target, detectron.spec)
    assert bgr.spec.INPUT.FORMAT == "BGR" and bgr.spec.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    kinds = [line.partition(":")[0] for line in detectron.differs]
    assert kinds == ["MODEL.FOCAL_RETINA.TOP_BLOCK.RELU", "anchors"]  # what no weights make up for
    expected, *_ = predict(build_detector(rgb), IMAGE)
    actual, *_ = predict(build_detector(bgr), IMAGE.flip(0))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_norm_in_the_fpn(norm):
    conversion = to_detectron2(randomize(Mmdet()).state_dict(), "mmdet", K)
    top_block = "MODEL.FOCAL_RETINA.TOP_BLOCK"
    opts = [f"{top_block}.IN_FEATURE", "p5", f"{top_block}.RELU", True, "MODEL.FPN.NORM", norm]
    model = randomize(build_network(with_keys(conversion, *opts)))
    ours = replace(with_keys(conversion, *opts), data={"model": model.state_dict()})
    theirs = from_detectron2(ours, "torchvision-v1")
    assert norm == theirs.spec.MODEL.FPN.NORM
    assert "backbone.fpn.layer_blocks.2.1.bias" in theirs.tensors
    assert not theirs.unused and not theirs.missing
    back = convert(theirs.data, ADAPTERS["torchvision-v1"], ADAPTERS["detectron2"], theirs.spec)
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(back.tensors[key], tensor, msg=key)
