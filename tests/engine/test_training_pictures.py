"""Pictures of a training: what is drawn, and that nothing else changes."""

import random

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from helpers import make_batch, make_instances, toy_cfg

from focal_retina.engine.training_pictures import (
    _MAX_ANCHORS,
    TrainingPictures,
    draw_training_pictures,
)

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
    labels, matched = torch.tensor([2, 2, -1, K]), torch.zeros(4, dtype=torch.int64)
    return np.full((60, 80, 3), 128.0), gt, anchors, labels, matched, found


def test_kinds_of_anchors_and_of_detections_have_their_colours(drawn):
    boxes, texts = drawn
    pictures = draw_training_pictures(*make_scene(), num_classes=K, positive_iou=0.5)
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


def test_many_anchors_are_sampled(drawn):
    image, gt, _, _, _, found = make_scene()
    corners = torch.rand(500, 2) * 10
    anchors = Boxes(torch.cat([corners, corners + 30], dim=1))
    labels = torch.full((500,), -1)
    draw_training_pictures(
        image, gt, anchors, labels, torch.zeros_like(labels), found, num_classes=K, positive_iou=0.5
    )
    assert sum(color == "#9fb6d9" for _, color, _ in drawn[0]) == _MAX_ANCHORS


def test_an_image_without_objects_and_detections():
    image, gt, anchors, labels, matched, found = make_scene()
    pictures = draw_training_pictures(
        image, gt[:0], anchors, torch.full_like(labels, K), matched, found[:0],
        num_classes=K, positive_iou=0.5,
    )  # fmt: skip
    assert set(pictures) == TITLES


class _OneBatch(TrainerBase):
    """Trains a model for some iterations on one batch, without an optimizer."""

    def __init__(self, model):
        super().__init__()
        self.model, self.losses = model, []

    def run_step(self):
        losses = self.model(make_batch())
        sum(losses.values()).backward()
        self.losses += losses.values()


def train(period, *, iterations=2, device="cpu"):
    """Losses, gradients, buffers and the states of all random generators; and the pictures."""
    torch.manual_seed(0)
    model = build_model(toy_cfg("MODEL.DEVICE", device)).train()
    trainer = _OneBatch(model)
    if period:
        trainer.register_hooks([TrainingPictures(model, period=period)])
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    trainer.train(0, iterations)
    assert model.training
    tensors = [
        *trainer.losses,
        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        *model.buffers(),
        torch.get_rng_state(),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
    ]
    return tensors, random.getstate(), trainer.storage._vis_data


def test_pictures_change_neither_losses_nor_gradients_nor_random_numbers():
    without, state, pictures = train(period=0, iterations=3)
    assert pictures == []
    with_pictures, state_with_pictures, pictures = train(period=2, iterations=3)
    assert [iteration for *_, iteration in pictures] == [0] * 3 + [2] * 3
    assert {name for name, *_ in pictures} == TITLES
    assert pictures[0][1].shape[0] == 3  # channels first
    assert state_with_pictures == state
    assert all(map(torch.equal, without, with_pictures))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    assert {name for name, *_ in train(period=1, device="cuda")[2]} == TITLES
