"""The evaluator of a data set."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_retina.data import register_coco_json
from focal_retina.evaluation import COCOEvaluator, build_evaluator


@pytest.fixture
def name(tiny_coco):
    json_file, folder = tiny_coco
    register_coco_json("tiny_to_evaluate", str(json_file), str(folder))
    yield "tiny_to_evaluate"
    DatasetCatalog.remove("tiny_to_evaluate")
    MetadataCatalog.remove("tiny_to_evaluate")


def test_coco_data_has_the_fast_evaluator(name, tmp_path):
    assert type(build_evaluator(name, str(tmp_path))) is COCOEvaluator


def test_another_type_is_an_error_that_says_what_to_do(tmp_path):
    MetadataCatalog.get("streets").evaluator_type = "cityscapes_instance"
    with pytest.raises(ValueError, match="'cityscapes_instance'.*override Trainer.build_evaluator"):
        build_evaluator("streets", str(tmp_path))
    MetadataCatalog.remove("streets")
