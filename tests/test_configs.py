"""Every yaml in configs/ is read, has the keys it claims, and builds."""

import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from helpers import MODELS, ROOT, SWEEPS, commands, default_cfg, differences, header, load, name_of

from focal_retina.data.mapper import build_train_augmentation
from focal_retina.engine.config_checks import check_keys, check_solver, check_values


@pytest.mark.filterwarnings("error:.*no-op:UserWarning")
@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_both_readers_agree_and_it_builds(path):
    cfg = default_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)  # by Detectron2's own, without unsafe yaml
    cfg.MODEL.DEVICE = "cpu"
    assert cfg == load(path)
    check_keys(cfg)
    check_values(cfg)
    check_solver(cfg, 1)
    cfg.MODEL.DEVICE = "meta"  # shapes and modules, no numbers
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    (num_anchors,) = set(model.anchor_generator.num_cell_anchors)
    assert model.head.cls_score.out_channels == num_anchors * cfg.MODEL.RETINANET.NUM_CLASSES
    assert len(model.anchor_generator.num_cell_anchors) == len(cfg.MODEL.RETINANET.IN_FEATURES)


@pytest.mark.parametrize("path", [*MODELS, *SWEEPS], ids=name_of)
def test_the_header_has_its_command_and_names_files_that_exist(path):
    text = "\n".join(header(path))
    named = re.findall(r"\b(?:configs|focal_retina|tools)/[\w./-]+\.(?:py|yaml)\b", text)
    assert [x for x in named if not (ROOT / x).is_file()] == []
    assert commands(path) or path.name.startswith("Base-")
    assert all(f"configs/{name_of(path)}" in command for command in commands(path))


@pytest.mark.parametrize("name", ["Base", "R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"])
def test_is_detectron2s_zoo_but_for_the_model(name):
    ours, zoo = f"COCO/retinanet_{name}", f"COCO-Detection/retinanet_{name}"
    if name == "Base":
        ours, zoo = "Base-FocalRetinaNet", "Base-RetinaNet"
    expected = load(model_zoo.get_config_file(f"{zoo}.yaml"))
    assert expected.MODEL.META_ARCHITECTURE == "RetinaNet"
    expected.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    assert load(f"{ours}.yaml") == expected


def test_modern_recipe_has_what_its_header_says():
    cfg = load("COCO/retinanet_R_50_FPN_modern.yaml")
    assert differences(cfg, load("COCO/retinanet_R_50_FPN_1x.yaml")) == {
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.RETINANET.NORM": "GN",
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
        "INPUT.LARGE_SCALE_JITTER.ENABLED": True,
        "SOLVER.STEPS": (480000, 520000),
        "SOLVER.MAX_ITER": 540000,
    }
    epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / 118287  # images of COCO 2017's train
    assert epochs == pytest.approx(72, abs=1.5)
    kinds = [type(x) for x in build_train_augmentation(cfg)]
    assert kinds == [T.ResizeScale, T.FixedSizeCrop, T.RandomFlip]
