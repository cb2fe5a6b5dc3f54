"""LVIS's 1,203 classes and 1,000 objects in an image: the promises of docs/scaling.md hold in a
whole training step, and the evaluation gets through."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import LargestTensor, load

from benchmarks.inputs import spread_outputs
from benchmarks.timing import measure
from focal_retina.data import build_train_loader, check_num_classes, register_coco_json
from focal_retina.data.mapper import build_train_mapper
from focal_retina.dataset_check import check_datasets
from focal_retina.evaluation import build_evaluator

NUM_CLASSES, NUM_OBJECTS, SIDE = 1203, 1000, 192
NAME = "lvis_like"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """One image of 1,000 objects, each of another class; category ids have gaps, as LVIS's do."""
    folder, generator = tmp_path_factory.mktemp("lvis_like"), np.random.default_rng(0)
    pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "1.png"), pixels)
    size = generator.integers(6, 40, (NUM_OBJECTS, 2))
    boxes_xywh = np.concatenate([generator.integers(0, SIDE - size), size], axis=1).tolist()
    ids = [2 * k + 1 for k in range(NUM_CLASSES)]
    common = {"image_id": 1, "iscrowd": 0}
    annotations = [
        {**common, "id": i, "category_id": k, "bbox": box, "area": box[2] * box[3]}
        for i, (k, box) in enumerate(zip(ids, boxes_xywh, strict=False), 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}],
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in ids],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_json(NAME, str(folder / "annotations.json"), str(folder))


@pytest.fixture(scope="module")
def cfg():
    opts = [
        *("MODEL.RETINANET.NUM_CLASSES", NUM_CLASSES, "MODEL.FPN.OUT_CHANNELS", 8),
        *("MODEL.RETINANET.NUM_CONVS", 1, "TEST.DETECTIONS_PER_IMAGE", NUM_OBJECTS),
        *("INPUT.MIN_SIZE_TRAIN", (SIDE,), "INPUT.MIN_SIZE_TEST", SIDE),
        *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "SOLVER.IMS_PER_BATCH", 1),
        *("DATALOADER.NUM_WORKERS", 0, "MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", ""),
    ]
    return load("quickstart/shapes.yaml", *opts)


@pytest.fixture(scope="module")
def model(cfg):
    """Random weights; logits spread such that about 1 in 100 scores above the threshold."""
    torch.manual_seed(0)
    model = build_model(cfg).to(memory_format=torch.channels_last)
    image = torch.randint(256, (3, SIDE, SIDE)).float()
    spread_outputs(model, [{"image": image}], bias=-4.6, logits=0.7, deltas=0.1)
    return model


def test_a_training_step_needs_no_tensor_larger_than_the_logits_of_a_level(cfg, model, data_set):
    """No one-hot target, no mask, no levels in one piece, no matrix of objects by anchors; and the
    loss keeps the logits' bytes, once."""
    batch = next(iter(build_train_loader(cfg, build_train_mapper(cfg))))
    assert [len(x["instances"]) for x in batch] == [NUM_OBJECTS]
    seen = []
    handle = model.cls_loss.register_forward_pre_hook(lambda _, args: seen.append(args))
    with EventStorage(), LargestTensor() as largest:
        losses = model.train()(batch)
        sum(losses.values()).backward()
    handle.remove()
    assert all(x.isfinite() for x in losses.values())

    ((logits, labels),) = seen
    level_bytes = [x.numel() * x.element_size() for x in logits]
    assert largest.nbytes == max(level_bytes)
    assert len(torch.cat([y.flatten() for y in labels]).unique()) > NUM_OBJECTS / 2

    def loss_and_gradient():
        total, _ = model.cls_loss([x.detach().requires_grad_() for x in logits], labels)
        total.backward()

    (row,) = measure("step", {"ours": loss_and_gradient}, torch.device("cpu"), runs=1)
    assert row.saved_bytes == sum(level_bytes)
    if row.peak_bytes is not None:  # it is read from Linux's /proc
        assert row.peak_bytes < 0.5 * sum(level_bytes)


def test_data_of_many_classes_is_checked_and_evaluated(cfg, model, data_set, tmp_path):
    check_num_classes(NUM_CLASSES, [NAME])
    check_datasets([NAME], [NAME], mode="error", num_decoded=-1)
    results = inference_on_dataset(
        model, build_detection_test_loader(cfg, NAME), build_evaluator(NAME, str(tmp_path))
    )
    assert len(results["bbox"]) == 6 + NUM_CLASSES
    detections = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert 0 < len(detections) <= NUM_OBJECTS
    assert {x["category_id"] for x in detections} <= {2 * k + 1 for k in range(NUM_CLASSES)}
