"""The validation loss is training's loss, of the same network on the same images."""

import copy
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from helpers import toy_cfg

from focal_retina.data import build_train_mapper
from focal_retina.engine import Trainer
from focal_retina.evaluation import ValidationLoss
from focal_retina.modeling.inference import inference_copy

OHEM = "MODEL.FOCAL_RETINA.CLS_LOSS.NAME OHEM MODEL.FOCAL_RETINA.CLS_LOSS.OHEM.BATCH_SIZE 8"
NAME = "tiny"
WORDS = f"""
    MODEL.RETINANET.NUM_CLASSES 2 DATASETS.TEST ('{NAME}',) DATASETS.TRAIN ('{NAME}',)
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.RANDOM_FLIP none
    DATALOADER.NUM_WORKERS 0 TEST.LOSS True
"""


def build(tmp_path, *words):
    torch.manual_seed(0)
    cfg = toy_cfg(*WORDS.split(), *" ".join(words).split(), "OUTPUT_DIR", str(tmp_path))
    return cfg, build_model(cfg)


@pytest.mark.parametrize(
    "mode, loss", [("batch", ""), ("image", ""), ("batch", OHEM), ("image", OHEM)]
)
def test_it_is_the_loss_of_a_batch_of_all_images(mode, loss, tiny, tmp_path):
    """In FrozenBN, of which training and evaluation have the same."""
    cfg, model = build(tmp_path, f"MODEL.FOCAL_RETINA.NORMALIZER.MODE {mode} {loss}")
    found = Trainer.test(cfg, model)["validation"]
    mapper = build_train_mapper(cfg)
    with torch.no_grad():
        expected = model.train()([mapper(x) for x in DatasetCatalog.get(NAME)])
    assert found.pop("total_loss") == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert found == pytest.approx({k: x.item() for k, x in expected.items()}, rel=1e-5)


def test_the_state_of_the_normalizer_and_the_detections_stay(tiny, tmp_path):
    cfg, model = build(tmp_path)
    before = copy.deepcopy(model.state_dict())
    with_loss = Trainer.test(cfg, model)
    assert with_loss.pop("validation")["total_loss"] > 0
    assert model.state_dict().keys() == before.keys()
    cfg.TEST.LOSS = False
    torch.testing.assert_close(Trainer.test(cfg, model), with_loss, rtol=0, atol=0, equal_nan=True)


def test_classes_in_another_order_and_sets_without_objects(tiny, tmp_path, caplog):
    cfg, model = build(tmp_path)
    records = [x for batch in Trainer.build_test_loader(cfg, NAME) for x in batch]
    numbered = [x["instances"].gt_classes.clone() for x in records]
    detector = inference_copy(model.eval())

    def evaluate(indices):
        evaluator = ValidationLoss(detector, NAME, indices)
        evaluator.reset()
        for record, classes in zip(records, numbered, strict=True):
            record["instances"].gt_classes = classes.clone()
            evaluator.process([record], detector([record]))
        return evaluator.evaluate()

    expected = evaluate(None)
    numbered = [1 - x for x in numbered]
    assert evaluate([1, 0]) == expected != evaluate(None)

    for record in records:
        record["instances"] = record["instances"][:0]
    numbered = [x[:0] for x in numbered]
    with caplog.at_level(logging.WARNING, "focal_retina"):
        assert evaluate(None) is None
    assert f"{NAME} has no annotated objects: no validation loss" in caplog.text
