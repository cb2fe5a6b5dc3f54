"""Pictures of a training: what is drawn, and that nothing else changes."""

import random

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from helpers import make_batch, make_instances, toy_cfg

from focal_retina.engine.training_pictures import TrainingPictures, draw_training_pictures

TITLES = {"anchors by label", "objects and their anchors", "top detections"}
K = 3


@pytest.fixture
def drawn(monkeypatch):
    """Colours of the boxes and texts, in the order in which Detectron2's Visualizer drew them."""
    boxes, texts = [], []

    def draw_box(self, corners, *, edge_color, line_style, **options):
        boxes.append((tuple(corners), edge_color, line_style))

    monkeypatch.setattr(Visualizer, "draw_box", draw_box)
    monkeypatch.setattr(Visualizer, "draw_text", lambda self, x, *args, **kwargs: texts.append(x))
    return boxes, texts


def make_scene():
    """One object, found once and missed once; an anchor each: exact, promoted, ignored, far off."""
    gt = make_instances([[10, 10, 40, 40]], [2], (60, 80))
    found = Instances((60, 80))
    found.pred_boxes = Boxes(torch.tensor([[11.0, 10, 41, 40], [50.0, 10, 70, 40]]))
    found.scores = torch.tensor([0.9, 0.4])
    found.pred_classes = torch.tensor([2, 2])
    anchors = Boxes(
        torch.tensor([[10.0, 10, 40, 40], [10, 10, 25, 25], [14, 14, 44, 44], [50, 30, 60, 40]])
    )
    labels, positives, owners = torch.tensor([2, 2, -1, K]), torch.arange(2), torch.tensor([0, 0])
    return np.full((60, 80, 3), 128.0), gt, anchors, labels, positives, owners, found


def test_kinds_of_anchors_and_of_detections_have_their_colours(drawn):
    boxes, texts = drawn
    pictures = draw_training_pictures(*make_scene(), positive_iou=0.5)
    assert set(pictures) == TITLES
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and picture.shape == (480, 640, 3)  # enlarged to 640
    blue, orange, gray, white = "#00b7ff", "#ff7a1a", "#9fb6d9", "#ffffff"
    by_label, matches, detections = boxes[:4], boxes[4:7], boxes[7:]
    assert [(corners, color) for corners, color, _ in by_label] == [
        ((14, 14, 44, 44), gray),
        ((10, 10, 40, 40), blue),
        ((10, 10, 25, 25), orange),
        ((10, 10, 40, 40), white),
    ]
    assert [style for *_, style in matches] == ["-", "-", ":"]
    assert [color for _, color, _ in detections] == [white, blue, orange]
    assert "class 2: 2" in texts and "2 0.90" in texts
    assert any("1 promoted below IoU 0.5" in text and "of 4 anchors" in text for text in texts)


def test_without_objects_and_detections_and_with_many_ignored_anchors(drawn):
    image, gt, anchors, *_, found = make_scene()
    many, ignored = Boxes(anchors.tensor.repeat(99, 1)), torch.full((99 * len(anchors),), -1)
    none = torch.zeros(0, dtype=torch.int64)
    scene = image, gt[:0], many, ignored, none, none, found[:0]
    assert set(draw_training_pictures(*scene, positive_iou=0.5)) == TITLES
    assert 0 < len(drawn[0]) < 20  # a sample, which leaves the image to be seen


def train(period, *, iterations=2, device="cpu"):
    """What was trained, numbers of all random generators after it, and the pictures."""
    torch.manual_seed(0)
    model = build_model(toy_cfg("MODEL.DEVICE", device))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    trainer = SimpleTrainer(model, [make_batch()] * iterations, optimizer)
    if period:
        trainer.register_hooks([TrainingPictures(model, period=period)])
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    trainer.train(0, iterations)
    assert model.training
    numbers = torch.rand(1), torch.tensor([random.random(), np.random.rand()])  # noqa: NPY002
    return [*model.state_dict().values(), *numbers], trainer.storage._vis_data


def test_pictures_change_neither_the_training_nor_random_numbers():
    without, pictures = train(period=0, iterations=3)
    assert pictures == []
    with_pictures, pictures = train(period=2, iterations=3)
    assert [iteration for *_, iteration in pictures] == [0] * 3 + [2] * 3
    assert {name for name, *_ in pictures} == TITLES
    assert pictures[0][1].shape[0] == 3  # channels first
    assert all(map(torch.equal, without, with_pictures))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    assert {name for name, *_ in train(period=1, device="cuda")[1]} == TITLES
