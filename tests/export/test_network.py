import pytest
import torch
from torch import nn

from focal_retina.export import DenseNetwork, DetectionNetwork
from focal_retina.modeling import DensePostprocessor


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(64, 96), (16, 16), (112, 48)])
def test_dense_network_is_the_model(toy_model, size):
    """Logits, deltas and anchors are those of FocalRetinaNet."""
    image = 255 * torch.rand(1, 3, *size)
    with torch.no_grad():
        outputs = DenseNetwork(toy_model)(image)
        images = toy_model.preprocess_image([{"image": image[0]}])
        anchors, logits, deltas = toy_model.dense_predictions(images.tensor)
    anchors = [x.tensor for x in anchors]
    expected = [*logits, *deltas, *anchors]
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-4)
    for output, reference in zip(outputs[-2:], anchors, strict=True):
        assert torch.equal(output, reference)


@pytest.mark.parametrize("score_thresh", [0.05, 0.5, 1.0])
def test_detection_network_is_the_postprocessor(toy_model, score_thresh):
    """On the same dense predictions; at 1.0 there is nothing left to decode, or to suppress."""
    network = DetectionNetwork(toy_model)
    network.detector.postprocessor = DensePostprocessor(
        box2box_transform=toy_model.postprocessor.box2box_transform,
        score_thresh=score_thresh,
        topk_candidates=50,
    )
    image = 255 * torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        boxes, scores, classes = network(image)
        normalized = (image - toy_model.pixel_mean) / toy_model.pixel_std
        predictions = network.detector.dense_predictions(normalized)
        (expected,) = network.detector.postprocessor(*predictions, [(64, 96)])
    assert len(scores) == len(expected) and (len(scores) > 0) == (score_thresh < 1)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(classes, expected.pred_classes)


def test_other_anchors_are_refused(toy_model, monkeypatch):
    monkeypatch.setitem(toy_model._modules, "anchor_generator", nn.Identity())
    with pytest.raises(ValueError, match="ANCHOR_GENERATOR.NAME Identity can't be exported"):
        DenseNetwork(toy_model)
