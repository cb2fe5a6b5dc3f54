import dataclasses
import json

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.structures import ImageList

from focal_retina.deploy import ModelMeta, Predictor, build_meta, load_predictor
from focal_retina.deploy.meta import Preprocessing
from focal_retina.engine import UserError

PREPROCESSING = Preprocessing(
    input_format="BGR",
    min_size=64,
    max_size=112,
    pixel_mean=[10.0, 20.0, 30.0],
    pixel_std=[1.0, 2.0, 3.0],
    size_divisibility=16,
    smallest_side=32,
)


def test_resize_and_pad_are_those_of_detectron2(images):
    for image in images[:5]:
        resized = PREPROCESSING.resize(image)
        expected = ResizeShortestEdge([64, 64], 112).get_transform(image).apply_image(image)
        assert torch.equal(resized, torch.tensor(expected.transpose(2, 0, 1).copy()).float())
        mean = torch.tensor(PREPROCESSING.pixel_mean)[:, None, None]
        std = torch.tensor(PREPROCESSING.pixel_std)[:, None, None]
        padded = (PREPROCESSING.pad(resized) - mean) / std
        assert torch.equal(padded, ImageList.from_tensors([(resized - mean) / std], 16).tensor)


def test_rgb_is_bgr_reversed(images):
    rgb = dataclasses.replace(PREPROCESSING, input_format="RGB")
    assert torch.equal(rgb.resize(images[0]), PREPROCESSING.resize(images[0]).flip(0))


def test_small_images_are_padded_to_two_cells():
    assert PREPROCESSING.pad(torch.zeros(3, 5, 100)).shape == (1, 3, 32, 112)


def test_run_folder_is_detectron2s_predictor(toy_folder, toy_cfg, images):
    predictor = load_predictor(toy_folder)
    reference = DefaultPredictor(toy_cfg)
    for image in images[-4:]:
        (found,), expected = predictor.predict([image]), reference(image)["instances"]
        assert found.image_size == image.shape[:2] and len(found) > 0
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3
        )


def test_a_batch_of_one_size_is_its_images(toy_cfg, toy_model):
    predictor = Predictor(toy_model, build_meta(toy_cfg, toy_model))
    generator = np.random.default_rng(1)
    images = list(generator.integers(0, 256, (3, 70, 90, 3), dtype=np.uint8))
    assert predictor.predict([]) == []
    for image, found in zip(images, predictor.predict(images), strict=True):
        (alone,) = predictor.predict([image])
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-5)


def test_what_is_no_model(tmp_path, toy_folder):
    with pytest.raises(UserError, match=r"a config .* or a file \*.pt2"):
        load_predictor(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match="no file .*model.onnx"):
        load_predictor(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"no file .*config.yaml"):
        load_predictor(tmp_path)
    for name in ("model.onnx", "model.pt2"):
        (tmp_path / name).write_bytes(b"nonsense")
        (tmp_path / "meta.json").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match=r"no .*meta.json: it belongs beside"):
            load_predictor(tmp_path / name)
        (tmp_path / "meta.json").write_text("[]")
        with pytest.raises(ValueError, match="does not describe an exported model"):
            load_predictor(tmp_path / name)
    meta = {"classes": ["a"], "category_ids": [1], "levels": ["p3"], "with_nms": True}
    meta |= {"score_thresh": 0.1, "topk_candidates": 9, "nms_thresh": 0.5, "max_detections": 9}
    meta |= {"box_weights": [1.0] * 4, "preprocessing": dataclasses.asdict(PREPROCESSING)}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert ModelMeta.load(tmp_path).preprocessing == PREPROCESSING
    for name in ("model.onnx", "model.pt2"):
        with pytest.raises(ValueError, match=f"{name} is not"):
            load_predictor(tmp_path / name)
