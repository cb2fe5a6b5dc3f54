import dataclasses
import json

import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.structures import ImageList

from focal_retina.deploy import build_meta, load_predictor
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
        padded = (preprocessing.pad(resized) - mean) / std
        assert torch.equal(padded, ImageList.from_tensors([(resized - mean) / std], 16).tensor)
    rgb = dataclasses.replace(preprocessing, input_format="RGB")
    assert torch.equal(rgb.resize(images[0]), preprocessing.resize(images[0]).flip(0))
    assert preprocessing.pad(torch.zeros(3, 5, 100)).shape == (1, 3, 32, 112)  # two cells at least


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
    with pytest.raises(ValueError, match=f"{name} is not"):
        load_predictor(tmp_path / name, allow_code=True)
    with pytest.raises(UserError, match="has its config in it: leave out A 1"):
        load_predictor(tmp_path / name, ["A", 1])
