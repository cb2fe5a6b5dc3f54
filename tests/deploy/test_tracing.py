"""Detectron2's own ways of deployment, which trace the whole model on one image."""

import onnxruntime
import pytest
import torch
from detectron2.export import TracingAdapter


@pytest.fixture(scope="module")
def tensors(images):
    """Images (3, H, W) with none to some tens of detections."""
    return [torch.from_numpy(x.transpose(2, 0, 1).copy()).float() for x in images]


@pytest.fixture(scope="module")
def detections(toy_model, tensors):
    """What the model finds in each: boxes, classes and scores."""
    found = [toy_model([{"image": x}])[0]["instances"] for x in tensors]
    return [(x.pred_boxes.tensor, x.pred_classes, x.scores) for x in found]


@pytest.fixture(scope="module")
def few(detections):
    """The image to trace on: the one with the fewest detections that has three."""
    counts = [len(scores) for *_, scores in detections]
    index = counts.index(min(x for x in counts if x >= 3))
    assert counts[index] < 10 and sum(x > 2 * counts[index] for x in counts) >= 6
    return index


def torch_trace(adapter, path):
    return torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


def onnx_trace(adapter, path):
    torch.onnx.export(
        adapter,
        adapter.flattened_inputs,
        path,
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )
    session = onnxruntime.InferenceSession(path)
    return lambda image: map(torch.from_numpy, session.run(None, {"image": image.numpy()}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trace", [torch_trace, onnx_trace])
def test_a_trace_loses_no_detection_of_other_images(
    trace, toy_model, tensors, detections, few, tmp_path
):
    """The number of candidates is no constant of the graph."""
    adapter = TracingAdapter(toy_model, [{"image": tensors[few]}]).eval()
    traced = trace(adapter, str(tmp_path / "model.onnx"))
    for image, expected in zip(tensors, detections, strict=True):
        boxes, classes, scores, _ = traced(image)
        assert len(scores) == len(expected[2])
        torch.testing.assert_close(boxes, expected[0], rtol=1e-5, atol=1e-3)
        assert torch.equal(classes, expected[1])
        torch.testing.assert_close(scores, expected[2], rtol=0, atol=1e-4)
