"""The mapper that keeps crowds, against Detectron2's."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from focal_retina.data.mapper import TrainMapper


@pytest.fixture
def record(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 80, 3), np.uint8))
    boxes = [[10, 10, 30, 30], [0, 0, 80, 60], [40, 20, 70, 50]]
    annotations = [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": i,
            "iscrowd": int(i == 1),
            "segmentation": {"counts": []},
        }
        for i, box in enumerate(boxes)
    ]
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 60,
        "width": 80,
        "annotations": annotations,
    }


def test_keeps_crowds_and_is_detectron2s_mapper_otherwise(record):
    cfg = get_cfg()
    cfg.INPUT.RANDOM_FLIP = "none"
    before = copy.deepcopy(record)
    kept = TrainMapper(cfg, is_train=True, keep_crowds=True)(record)
    assert record == before
    stock = DatasetMapper(cfg, is_train=True)(record)
    assert torch.equal(kept["image"], stock["image"])
    instances = kept["instances"]
    assert instances.gt_is_crowd.tolist() == [False, True, False]
    others = instances[~instances.gt_is_crowd]
    assert torch.equal(others.gt_boxes.tensor, stock["instances"].gt_boxes.tensor)
    assert torch.equal(others.gt_classes, stock["instances"].gt_classes)


def test_image_without_annotations(record):
    record["annotations"] = []
    instances = TrainMapper(get_cfg(), is_train=True, keep_crowds=True)(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_is_crowd.dtype == torch.bool
