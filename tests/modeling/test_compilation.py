"""The compiled network is the same network."""

import shutil

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model

from focal_retina import add_focal_retina_config, merge_config_file
from focal_retina.modeling.compilation import compile_network


@pytest.fixture
def model():
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001
    torch.manual_seed(0)
    return build_model(cfg).eval()


def test_traced_network_keeps_detections_and_keys(model):
    """Traced and run without a compiler, which would take minutes."""
    batch = [{"image": torch.randint(256, (3, 64, 96))}]
    with torch.no_grad():
        (before,) = model(batch)
    keys = list(model.state_dict())
    compile_network(model, backend="eager")
    with torch.no_grad():
        (after,) = model(batch)
    assert list(model.state_dict()) == keys
    assert len(before["instances"]) > 0
    torch.testing.assert_close(after["instances"].scores, before["instances"].scores)


def test_without_a_compiler_the_error_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler.*COMPILE False"):
        compile_network(model)
