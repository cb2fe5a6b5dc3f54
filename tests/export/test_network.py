import pytest
import torch
from detectron2.structures import ImageList
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
        features = toy_model.backbone(images.tensor)
        features = [features[name] for name in toy_model.head_in_features]
        predictions = toy_model._transpose_dense_predictions(toy_model.head(features), [2, 4])
        anchors = [x.tensor for x in toy_model.anchor_generator(features)]
    expected = [*predictions[0], *predictions[1], *anchors]
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
        images = ImageList(image, [(64, 96)])
        normalized = (image - toy_model.pixel_mean) / toy_model.pixel_std
        features = network.detector.backbone(normalized)
        features = [features[name] for name in toy_model.head_in_features]
        (expected,) = network.detector.forward_inference(
            images, features, network.detector.head(features)
        )
    assert len(scores) == len(expected) and (len(scores) > 0) == (score_thresh < 1)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(classes, expected.pred_classes)


def test_other_anchors_are_refused(toy_model, monkeypatch):
    monkeypatch.setitem(toy_model._modules, "anchor_generator", nn.Identity())
    with pytest.raises(ValueError, match="ANCHOR_GENERATOR.NAME Identity can't be exported"):
        DenseNetwork(toy_model)
