"""Exported files run on their own, and find what the model finds; what counts as the same."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.structures import Boxes, Instances

from focal_retina.deploy import Predictor, build_meta, export, load_predictor, write_targets
from focal_retina.deploy.comparison import compare
from focal_retina.engine import UserError, user_errors
from focal_retina.modeling import DensePostprocessor


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_same_detections_as_eager(exported, toy_model, images, name):
    folder, meta = exported
    eager = Predictor(toy_model, meta)
    # Nothing, a single object, and many: counts that a graph might take for cases of their own.
    counts = {len(eager.predict([image])[0]) for image in images}
    assert {0, 1} < counts and max(counts) > 50
    agreement = compare(load_predictor(folder / name, allow_code=True), eager, images)
    assert (agreement.images, agreement.unmatched) == (20, 0), agreement
    assert agreement.score_error <= 1e-3 and agreement.box_error <= 1e-3


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("score_thresh", [0.05, 0.5, 1.0])
def test_nms_for_export_is_that_of_eager(toy_model, score_thresh, class_agnostic):
    """Image by image; at 1.0 there is nothing left to decode, or to suppress."""
    postprocessor = DensePostprocessor(
        box2box_transform=toy_model.postprocessor.box2box_transform,
        score_thresh=score_thresh,
        topk_candidates=50,
        class_agnostic_nms=class_agnostic,
    )
    images = 255 * torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    images[1] /= 4  # with fewer candidates
    with torch.no_grad():
        predictions = toy_model.dense_predictions(
            (images - toy_model.pixel_mean) / toy_model.pixel_std
        )
    expected = postprocessor(*predictions, [(64, 96)] * 3)
    *found, of_image = postprocessor.detect_in_batch(*predictions)
    assert (len(of_image) > 0) == (score_thresh < 1)
    assert of_image.tolist() == [i for i, x in enumerate(expected) for _ in range(len(x))]
    reference = Instances.cat(expected)
    fields = reference.pred_boxes.tensor, reference.scores, reference.pred_classes
    assert all(map(torch.equal, found, fields))


def fixed_to(instances):
    return SimpleNamespace(predict=lambda _: [instances])


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        agreement = compare(fixed_to(ours), fixed_to(theirs), [None])
        assert agreement.unmatched == 0, agreement


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "model_int8.onnx"])
def test_batches(exported, toy_model, images, name):
    """Images of one size are found as one by one, those of unlike sizes as in PyTorch, where the
    padding to the largest changes numbers, too."""
    folder, meta = exported
    predictor = load_predictor(folder / name, allow_code=True)
    one_by_one = [images[-1], images[-1][::-1], images[-1] // 2]
    expected = [predictor.predict([x])[0] for x in one_by_one]
    assert len({len(x) for x in expected}) > 1
    assert_same(predictor.predict(one_by_one), expected)
    if "int8" not in name:
        assert_same(predictor.predict(images[-9:]), Predictor(toy_model, meta).predict(images[-9:]))


def test_onnx_by_itself(exported):
    """What a user without this package sees: one file, names, free batch, height and width."""
    folder, meta = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert not any(x.external_data for x in model.graph.initializer)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (image,) = session.get_inputs()
    assert image.name == "image" and image.type == "tensor(float)"
    assert image.shape[1] == 3 and all(isinstance(image.shape[i], str) for i in (0, 2, 3))
    names = [x.name for x in session.get_outputs()]
    if meta.with_nms:
        assert names == ["boxes", "scores", "classes", "images"]
        return
    kinds = ("logits", "deltas", "anchors")
    assert names == [f"{kind}_{level}" for kind in kinds for level in ("p3", "p4")]
    outputs = session.run(None, {"image": np.zeros((2, 3, 64, 96), np.float32)})
    p3, p4 = 8 * 12 * 9, 4 * 6 * 9  # 9 anchors a cell
    shapes = [(2, p3, 2), (2, p4, 2), (2, p3, 4), (2, p4, 4), (p3, 4), (p4, 4)]
    assert [x.shape for x in outputs] == shapes


def test_int8(exported, images):
    """Fewer bits, the same interface; the last layers keep theirs."""
    folder, meta = exported
    path = folder / "model_int8.onnx"
    convolutions = [x for x in onnx.load(path).graph.node if x.op_type == "Conv"]
    fp32 = [x for x in convolutions if "DequantizeLinear" not in x.input[1]]
    assert len(convolutions) > len(fp32) == 4  # two layers on two levels
    assert path.stat().st_size < 0.5 * (folder / "model.onnx").stat().st_size
    (found,) = load_predictor(path).predict(images[-1:])
    assert len(found) > 0
    if not meta.with_nms:
        image = meta.preprocessing.pad([meta.preprocessing.resize(images[-1])])
        logits = [export.load_graph(x)(image)[0] for x in (folder / "model.onnx", path)]
        assert 0.9 < np.corrcoef(*(x.flatten() for x in logits))[0, 1] < 1 - 1e-6


def test_missing_package(monkeypatch, toy_cfg, toy_model, tmp_path):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"onnx is not installed: pip .*\[export\]"), user_errors():
        write_targets(toy_model, build_meta(toy_cfg, toy_model), tmp_path)
    with pytest.raises(UserError, match="onnxruntime is not installed"), user_errors():
        export.load_graph(tmp_path / "model.onnx")


def test_what_pytorch_cannot_translate(toy_cfg, toy_model, tmp_path, monkeypatch):
    """Outputs whose number depends on the image."""
    forward = lambda self, image: tuple(image.flatten()[: int(image.sum())])  # noqa: E731
    monkeypatch.setattr(export.DetectorGraph, "forward", forward)
    with pytest.raises(UserError, match=r"PyTorch .* can't translate this model to torch.export"):
        write_targets(toy_model, build_meta(toy_cfg, toy_model), tmp_path)


BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 1500.0, 40.0]]


def fixed(boxes=BOXES, scores=(0.9, 0.8), classes=(0, 1)):
    """A predictor that finds the same in every image."""
    fields = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes)}
    found = Instances((100, 2000), pred_boxes=Boxes(torch.tensor(boxes)), **fields)
    return SimpleNamespace(predict=lambda images: [found] * len(images))


@pytest.mark.parametrize(
    ("found", "unmatched"),
    [
        (fixed(BOXES[::-1], [0.8, 0.9], [1, 0]), 0),  # near ties may change places
        (fixed(scores=[0.9005, 0.8]), 0),
        (fixed(scores=[0.902, 0.8]), 2),
        (fixed(classes=[1, 1]), 2),
        (fixed(BOXES[:1], [0.9], [0]), 1),
        (fixed([[0.0, 0.0, 10.0, 10.0009], BOXES[1]]), 0),
        (fixed([[0.0, 0.0, 10.0, 10.01], BOXES[1]]), 2),
        (fixed([BOXES[0], [20.0, 0.0, 1500.01, 40.0]]), 0),  # fp32 at 1,500
        (fixed([BOXES[0], [20.0, 0.0, 1500.05, 40.0]]), 2),
    ],
)
def test_counterparts(found, unmatched):
    agreement = compare(found, fixed(), [None] * 3)
    assert (agreement.images, agreement.detections, agreement.unmatched) == (3, 6, 3 * unmatched)


def test_errors_are_the_largest_of_counterparts():
    shifted = [[0.0, 0.0, 10.0, 10.0005], BOXES[1]]
    agreement = compare(fixed(shifted, [0.9, 0.8003]), fixed(), [None])
    assert (agreement.box_error, agreement.score_error) == pytest.approx((5e-4, 3e-4), rel=1e-2)
