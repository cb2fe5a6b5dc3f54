"""Pictures of a training: what is drawn, and that nothing else changes."""

import random

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from torch import nn

from focal_retina.engine.training_pictures import (
    _MAX_ANCHORS,
    TrainingPictures,
    draw_training_pictures,
)
from focal_retina.modeling import DenseHead, FocalRetinaNet

TITLES = {"anchors by label", "objects and their anchors", "top detections"}
K = 3


@pytest.fixture
def drawn(monkeypatch):
    """Colours of the boxes and texts, in the order in which Detectron2's Visualizer drew them."""
    boxes, texts = [], []
    draw_box, draw_text = Visualizer.draw_box, Visualizer.draw_text

    def record_box(self, corners, **options):
        boxes.append((tuple(corners), options["edge_color"], options["line_style"]))
        return draw_box(self, corners, **options)

    def record_text(self, text, *arguments, **options):
        texts.append(text)
        return draw_text(self, text, *arguments, **options)

    monkeypatch.setattr(Visualizer, "draw_box", record_box)
    monkeypatch.setattr(Visualizer, "draw_text", record_text)
    return boxes, texts


def make_scene():
    """One object, found once and missed once; an anchor each: exact, promoted, ignored, far off."""
    gt = Instances((60, 80))
    gt.gt_boxes = Boxes(torch.tensor([[10.0, 10, 40, 40]]))
    gt.gt_classes = torch.tensor([2])
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


def test_outlines_are_where_the_boxes_are():
    picture = draw_training_pictures(*make_scene(), num_classes=K, positive_iou=0.5)
    pixels = picture["top detections"].astype(int)
    assert pixels[8 * 25, 8 * 11, 2] > 200 > pixels[8 * 25, 8 * 11, 0]  # blue, on the left edge
    np.testing.assert_allclose(pixels[8 * 50, 8 * 20], 128, atol=2)  # the image itself


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


class _Backbone(nn.Module):
    size_divisibility, padding_constraints = 8, {}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, images):
        return {"p3": self.conv(images)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=4, stride=8)}


class _Head(DenseHead):
    def __init__(self):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Conv2d(4, K, 1), nn.Conv2d(4, 4, 1)

    def forward(self, features):
        return [self.cls_score(x) for x in features], [self.bbox_pred(x) for x in features]


def make_model():
    torch.manual_seed(0)
    return FocalRetinaNet(
        backbone=_Backbone(),
        head=_Head(),
        num_classes=K,
        head_in_features=["p3"],
        anchor_generator=DefaultAnchorGenerator(sizes=[[16]], aspect_ratios=[[1.0]], strides=[8]),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[100.0, 100.0, 100.0],
    )


def make_batch(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    gt = Instances((40, 48))
    gt.gt_boxes = Boxes(torch.tensor([[8.0, 8, 25, 25], [20, 10, 30, 30]]))
    gt.gt_classes = torch.tensor([0, 2])
    images = [torch.randint(256, (3, 40, 48), generator=generator) for _ in range(2)]
    return [{"image": image.to(torch.uint8), "instances": gt} for image in images]


class _OneBatch(TrainerBase):
    """Trains a model for some iterations on one batch, without an optimizer."""

    def __init__(self, model, batch):
        super().__init__()
        self.model, self.batch, self.losses = model, batch, []

    def run_step(self):
        losses = self.model(self.batch)
        sum(losses.values()).backward()
        self.losses.append({name: loss.detach() for name, loss in losses.items()})


def train(period, *, iterations=2, batch=None, device="cpu"):
    """Losses, gradients, buffers and the states of all random generators; and the pictures."""
    model = make_model().to(device).train()
    trainer = _OneBatch(model, batch or make_batch())
    if period:
        trainer.register_hooks([TrainingPictures(model, period=period)])
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    trainer.train(0, iterations)
    assert model.training
    tensors = {
        **{
            f"{name} of {i}": loss for i, x in enumerate(trainer.losses) for name, loss in x.items()
        },
        **{f"grad of {name}": p.grad for name, p in model.named_parameters()},
        **dict(model.named_buffers()),
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
    }
    return tensors, random.getstate(), trainer.storage._vis_data


def test_pictures_change_neither_losses_nor_gradients_nor_random_numbers():
    without, state, pictures = train(period=0)
    assert pictures == []
    with_pictures, state_with_pictures, pictures = train(period=1)
    assert {name for name, *_ in pictures} == TITLES
    assert state_with_pictures == state
    for name, value in without.items():
        assert torch.equal(with_pictures[name], value), name


def test_pictures_come_once_a_period():
    assert [iteration for *_, iteration in train(period=2, iterations=5)[2]] == [
        iteration for iteration in (0, 2, 4) for _ in TITLES
    ]


def test_storage_gets_channels_first_rgb():
    batch = make_batch()[:1]
    batch[0]["image"] = torch.tensor([10.0, 100, 200]).view(3, 1, 1).expand(3, 40, 48)  # BGR
    for name, picture, _ in train(period=1, iterations=1, batch=batch)[2]:
        assert picture.shape == (3, 533, 640), name  # 640 is 48 enlarged
        is_image = (picture == np.array([200, 100, 10])[:, None, None]).all(axis=0)
        assert is_image.mean() > 0.1, name  # and not [10, 100, 200]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    assert {name for name, *_ in train(period=1, device="cuda")[2]} == TITLES
