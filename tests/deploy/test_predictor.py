import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.structures import ImageList
from PIL import Image

from focal_retina.data import limit_pixels
from focal_retina.deploy import Predictor, TiledPredictor, build_meta, load_predictor
from focal_retina.deploy.meta import ModelMeta
from focal_retina.engine import UserError


def test_preprocessing_is_that_of_detectron2(images, toy_cfg, toy_model):
    preprocessing = build_meta(toy_cfg, toy_model).preprocessing
    preprocessing = dataclasses.replace(preprocessing, pixel_std=[1.0, 2.0, 3.0])
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (preprocessing.pixel_mean, preprocessing.pixel_std)
    )
    for image in images[:5]:
        resized = preprocessing.resize(image)
        expected = ResizeShortestEdge([64, 64], 112).get_transform(image).apply_image(image)
        assert torch.equal(resized, torch.tensor(expected.transpose(2, 0, 1).copy()).float())
        padded = (preprocessing.pad([resized]) - mean) / std
        assert torch.equal(padded, ImageList.from_tensors([(resized - mean) / std], 16).tensor)
    rgb = dataclasses.replace(preprocessing, input_format="RGB")
    assert torch.equal(rgb.resize(images[0]), preprocessing.resize(images[0]).flip(0))
    thin = torch.zeros(3, 5, 100)
    assert preprocessing.pad([thin]).shape == (1, 3, 32, 112)  # two cells at least
    assert preprocessing.pad([thin, thin.mT]).shape == (2, 3, 112, 112)


def test_run_folder_is_detectron2s_predictor(toy_cfg, images):
    predictor = load_predictor(toy_cfg.OUTPUT_DIR)
    reference = DefaultPredictor(toy_cfg)
    for image in images[-4:]:
        (found,), expected = predictor.predict([image]), reference(image)["instances"]
        assert found.image_size == image.shape[:2] and len(found) > 0
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_what_is_no_model(tmp_path, toy_cfg, toy_model, name):
    with pytest.raises(UserError, match=r"a config .yaml or a file .onnx, .pt2"):
        load_predictor(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
        load_predictor(tmp_path / name)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(FileNotFoundError, match=r"no .*meta.json: it belongs beside"):
        load_predictor(tmp_path / name, allow_code=True)
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match="does not describe an exported model"):
        load_predictor(tmp_path / name, allow_code=True)
    meta = build_meta(toy_cfg, toy_model)
    meta.save(tmp_path)
    assert ModelMeta.load(tmp_path) == meta
    earlier = json.loads((tmp_path / "meta.json").read_text())
    del earlier["threshold"]  # of a version that did not know it
    (tmp_path / "meta.json").write_text(json.dumps(earlier))
    assert ModelMeta.load(tmp_path) == meta
    dataclasses.replace(meta, max_image_pixels=10**9).save(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is not"):
        load_predictor(tmp_path / name, allow_code=True)
    assert Image.MAX_IMAGE_PIXELS == 10**9 // 2  # Pillow refuses twice that
    limit_pixels(meta.max_image_pixels)
    with pytest.raises(UserError, match="has its config in it: leave out A 1"):
        load_predictor(tmp_path / name, ["A", 1])


def found_by(predictor, *images):
    return [[x.pred_boxes.tensor, x.scores, x.pred_classes] for x in predictor.predict(images)]


@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_a_tile_that_covers_the_image_is_no_tile(exported, toy_cfg, images, name):
    predictor = load_predictor(exported[0] / name if name else toy_cfg.OUTPUT_DIR)
    side = max(images[-1].shape)
    tiled = TiledPredictor(predictor, tile=side)
    (found,), (expected,) = found_by(tiled, images[-1]), found_by(predictor, images[-1])
    assert len(found[0]) > 0 and all(map(torch.equal, found, expected))
    (found,) = found_by(TiledPredictor(predictor, tile=side - 1), images[-1])
    assert not torch.equal(found[1], expected[1])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_an_object_moves_with_its_place(exported, toy_cfg, name, batch_size):
    """In a large picture, at whose size it is too small to be seen, it is found in tiles, as in a
    small picture of its own. Tiles start at 0, 64, 128 and 192."""
    predictor = load_predictor(exported[0] / name if name else toy_cfg.OUTPUT_DIR)
    tiled = TiledPredictor(predictor, tile=64, overlap=0, batch_size=batch_size)
    large = np.full((256, 256, 3), predictor.meta.preprocessing.pixel_mean, np.uint8)
    large[150:170, 90:110] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    small = large[128:192, 64:128]
    (found,), (expected,) = found_by(tiled, large), found_by(predictor, small)
    (whole,) = found_by(predictor, large)
    assert len(expected[0]) > 5 and len(whole[0]) == 0
    # The box of an object may leave its tile, but not the small picture.
    found[0] = (found[0] - torch.tensor([64.0, 128, 64, 128])).clamp(0, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_tiles_cover_the_image(toy_model, toy_cfg):
    predictor = Predictor(toy_model, build_meta(toy_cfg, toy_model))
    for length, tile, overlap in [(100, 64, 0.2), (1000, 64, 0.3), (1000, 640, 0.0), (64, 64, 0.9)]:
        starts = TiledPredictor(predictor, tile=tile, overlap=overlap)._starts(length)
        assert starts[0] == 0 and starts[-1] + tile == length
        assert all(b - a <= tile * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))
    with pytest.raises(ValueError, match="overlap 1: "):
        TiledPredictor(predictor, tile=64, overlap=1)
