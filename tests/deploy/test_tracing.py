"""Detectron2's own ways of deployment, which trace the whole model on one image."""

import onnxruntime
import pytest
import torch
from detectron2.export import TracingAdapter


def torch_trace(adapter, path):
    return torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


def onnx_trace(adapter, path):
    names = {"input_names": ["image"], "dynamic_axes": {"image": {1: "height", 2: "width"}}}
    inputs = adapter.flattened_inputs
    torch.onnx.export(adapter, inputs, path, dynamo=False, opset_version=17, **names)
    session = onnxruntime.InferenceSession(path)
    return lambda image: map(torch.from_numpy, session.run(None, {"image": image.numpy()}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trace", [torch_trace, onnx_trace])
def test_a_trace_loses_no_detection_of_other_images(trace, toy_model, images, tmp_path):
    """The number of candidates is no constant of the graph: traced on an image with few, it finds
    none to many in others."""
    tensors = [torch.from_numpy(x.transpose(2, 0, 1).copy()).float() for x in images]
    detections = [toy_model([{"image": x}])[0]["instances"] for x in tensors]
    counts = [len(x) for x in detections]
    few = counts.index(min(x for x in counts if x >= 3))
    assert counts[few] < 10 and min(counts) == 0 and sum(x > 2 * counts[few] for x in counts) >= 6

    traced = trace(TracingAdapter(toy_model, [{"image": tensors[few]}]).eval(), tmp_path / "x.onnx")
    for image, expected in zip(tensors, detections, strict=True):
        boxes, classes, scores, _ = traced(image)
        assert torch.equal(classes, expected.pred_classes)
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
