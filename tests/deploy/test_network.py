import pytest
import torch
from detectron2.structures import Boxes

from focal_retina.deploy.targets import DetectorGraph
from focal_retina.modeling import DensePostprocessor


@pytest.mark.parametrize("size", [(64, 96), (16, 16), (112, 48)])
def test_dense_network_is_the_model(toy_model, size):
    """Logits, deltas and anchors are those of FocalRetinaNet."""
    image = 255 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = DetectorGraph(toy_model, with_nms=False)(image)
        images = toy_model.preprocess_image([{"image": image[0]}])
        anchors, logits, deltas = toy_model.dense_predictions(images.tensor)
    expected = [*logits, *deltas, *(x.tensor for x in anchors)]
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_exporting", [False, True])
@pytest.mark.parametrize("score_thresh", [0.05, 0.5, 1.0])
def test_detection_network_is_the_postprocessor(toy_model, score_thresh, is_exporting, monkeypatch):
    """On the same dense predictions; at 1.0 there is nothing left to decode, or to suppress."""
    network = DetectorGraph(toy_model, with_nms=True)
    network.detector.postprocessor = DensePostprocessor(
        box2box_transform=toy_model.postprocessor.box2box_transform,
        score_thresh=score_thresh,
        topk_candidates=50,
    )
    image = 255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predictions = DetectorGraph(toy_model, with_nms=False)(image)
        logits, deltas, anchors = predictions[:2], predictions[2:4], map(Boxes, predictions[4:])
        (expected,) = network.detector.postprocessor(anchors, logits, deltas, [(64, 96)])
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: is_exporting)
        boxes, scores, classes = network(image)
    assert len(scores) == len(expected) and (len(scores) > 0) == (score_thresh < 1)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(classes, expected.pred_classes)
