"""Class counts of a training set, and the alphas that the model makes of them."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from helpers import toy_cfg

from focal_retina.losses import balanced_alpha
from focal_retina.modeling.class_counts import count_objects


@pytest.fixture
def name():
    """One object of class 0, three of class 1, and a crowd of class 1."""
    annotations = [{"category_id": k} for k in (0, 1, 1, 1)]
    annotations.append({"category_id": 1, "iscrowd": 1})
    records = [{"file_name": "a.jpg", "annotations": annotations}]
    records.append({"file_name": "b.jpg", "annotations": []})
    DatasetCatalog.register("counted", lambda: records)
    return "counted"


def test_crowds_do_not_count(name):
    assert count_objects([name], 2) == [1, 3]
    assert count_objects([name, name], 3) == [2, 6, 0]


def test_class_out_of_range_names_set_and_image(name):
    with pytest.raises(ValueError, match=r"counted: a\.jpg has an object of class 1"):
        count_objects([name], 1)


def test_model_with_class_alpha_auto(name):
    cfg = toy_cfg("MODEL.RETINANET.NUM_CLASSES", 2, "DATASETS.TRAIN", (name,))
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA = "auto"
    model = build_model(cfg)
    torch.testing.assert_close(model.cls_loss.alpha, torch.tensor(balanced_alpha([1, 3], 0.25)))
