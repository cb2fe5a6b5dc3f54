"""Test-time augmentation: nothing augmented changes nothing, mirroring is symmetric."""

import numpy as np
import pytest
import torch
from detectron2.modeling import DatasetMapperTTA, build_model
from detectron2.structures import Boxes, pairwise_iou
from helpers import load
from torch import nn

from benchmarks.inputs import spread_outputs
from focal_retina.modeling.test_time_augmentation import DenseDetectorWithTTA

HEIGHT, WIDTH = 96, 160  # multiples of the stride: padding would break the symmetry
OVERRIDES = [
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.3, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 300),
    *("TEST.AUG.MIN_SIZES", [HEIGHT], "TEST.AUG.MAX_SIZE", 400),
]


@pytest.fixture(scope="module")
def cfg():
    return load("quickstart/shapes.yaml", *OVERRIDES)


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    spread_outputs(model, [{"image": make_image(0)}], bias=-2, logits=1.5, deltas=0.3)
    return model


def make_image(seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (3, HEIGHT // 8, WIDTH // 8), dtype=np.uint8)
    return torch.from_numpy(blocks.repeat(8, axis=1).repeat(8, axis=2))


def fields(output: dict) -> list[torch.Tensor]:
    instances = output["instances"]
    return [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]


@pytest.mark.parametrize("batch_size, scale", [(1, 1), (3, 1), (3, 2)])
def test_without_augmentation_it_is_plain_inference(cfg, model, batch_size, scale):
    """Also of an image half as large as its original, as after ResizeShortestEdge."""
    original = {"height": scale * HEIGHT, "width": scale * WIDTH}
    mapper = DatasetMapperTTA(min_sizes=[HEIGHT], max_size=400, flip=False)
    inputs = [{"image": make_image(seed), **original} for seed in (0, 1)]
    with torch.no_grad():
        plain = [model([x])[0] for x in inputs]
    augmented = DenseDetectorWithTTA(model, mapper, batch_size)(inputs)
    for ours, expected in zip(augmented, plain, strict=True):
        assert len(expected["instances"]) > 10
        assert ours["instances"].image_size == (scale * HEIGHT, scale * WIDTH)
        torch.testing.assert_close(fields(ours), fields(expected))


def test_with_mirroring_it_is_symmetric(cfg, model):
    detector = DenseDetectorWithTTA(model, DatasetMapperTTA(cfg))
    image = make_image(2)
    (seen,), (mirrored,) = detector([{"image": image}]), detector([{"image": image.flip(2)}])
    boxes, scores, classes = fields(mirrored)
    back = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], dim=1)
    torch.testing.assert_close(fields(seen), [back, scores, classes], atol=1e-3, rtol=1e-4)
    with torch.no_grad():
        (alone,) = model([{"image": image}])
    assert not torch.allclose(alone["instances"].scores[:10], scores[:10])  # it is not symmetric


def test_candidates_of_all_images_pass_nms_together(cfg, model):
    """No two boxes of a class overlap more than the threshold, and the best of each image is kept
    where no other image's suppresses it."""
    cfg = cfg.clone()
    cfg.TEST.AUG.MIN_SIZES = [64, HEIGHT, 128]
    detector = DenseDetectorWithTTA(model, DatasetMapperTTA(cfg))
    (output,) = detector([{"image": make_image(3)}])
    boxes, scores, classes = fields(output)
    assert len(boxes) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    overlap = pairwise_iou(Boxes(boxes), Boxes(boxes)).fill_diagonal_(0)
    # Clipping to the image comes after NMS, and can raise an IoU.
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < torch.tensor([WIDTH, HEIGHT])).all(1)
    same = (classes[:, None] == classes) & inside[:, None] & inside
    assert (overlap[same] <= cfg.MODEL.RETINANET.NMS_THRESH_TEST + 1e-4).all()

    best_alone = []
    for size in cfg.TEST.AUG.MIN_SIZES:
        mapper = DatasetMapperTTA(min_sizes=[size], max_size=400, flip=True)
        (alone,) = DenseDetectorWithTTA(model, mapper)([{"image": make_image(3)}])
        best_alone.append(alone["instances"].scores.max())
    torch.testing.assert_close(scores.max(), max(best_alone))


def test_an_image_without_candidates_has_no_detections(cfg, model):
    quiet = build_model(cfg).eval()
    nn.init.constant_(quiet.head.cls_score.bias, -20)
    (output,) = DenseDetectorWithTTA(quiet, DatasetMapperTTA(cfg))([{"image": make_image(5)}])
    assert len(output["instances"]) == 0


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"TEST\.AUG.*Identity is not supported.*FocalRetinaNet"):
        DenseDetectorWithTTA(nn.Identity(), DatasetMapperTTA([64], 400, False))
