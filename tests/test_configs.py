"""Every yaml in configs/ is read, has the keys it claims, and builds."""

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from focal_retina import add_focal_retina_config, merge_config_file

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def load(path):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(path))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_builds(path):
    cfg = load(path)
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert model.head.cls_score.out_channels % cfg.MODEL.RETINANET.NUM_CLASSES == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_detectron2s_own_reader_reads_it_without_unsafe_yaml(path):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    assert cfg == load(path)


def test_base_is_detectron2s_base_but_for_the_model():
    stock = get_cfg()
    add_focal_retina_config(stock)
    merge_config_file(stock, model_zoo.get_config_file("Base-RetinaNet.yaml"))
    stock.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    stock.MODEL.DEVICE = "cpu"
    assert load(ROOT / "configs" / "Base-FocalRetinaNet.yaml") == stock
