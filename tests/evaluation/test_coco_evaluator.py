"""COCOEvaluator against Detectron2's: the same results and files from the same outputs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator as StockEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from focal_retina.evaluation import ClassSelector, COCOEvaluator, build_evaluator
from focal_retina.evaluation.box_metrics import evaluate_boxes

COCO_SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "coco_eval"
NAME = "tiny"


@pytest.fixture(params=["hotcoco", "pycocotools"])
def library(request, monkeypatch):
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "hotcoco", None)


def outputs_of(image_id):
    """Detections near the middle of tiny_coco's 64 px images, in the classes 0 and 1."""
    generator = torch.Generator().manual_seed(image_id)
    corners = torch.rand(9, 2, generator=generator) * 30
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.cat([corners, corners + 28], dim=1))
    instances.scores = torch.rand(9, generator=generator)
    instances.pred_classes = torch.randint(2, (9,), generator=generator)
    return {"instances": instances}


def evaluate(evaluator, image_ids=range(1, 7), **options):
    evaluator.reset()
    for image_id in image_ids:
        evaluator.process([{"image_id": image_id}], [outputs_of(image_id)])
    return evaluator.evaluate(**options)


def assert_same(actual, expected):
    assert list(actual["bbox"]) == list(expected["bbox"])
    np.testing.assert_allclose(
        list(actual["bbox"].values()), list(expected["bbox"].values()), rtol=0, atol=1e-12
    )


def test_results_and_files_are_detectron2s(tiny, tmp_path):
    stock = evaluate(StockEvaluator(NAME, output_dir=str(tmp_path / "stock"), use_fast_impl=False))
    ours = evaluate(build_evaluator(NAME, str(tmp_path / "ours")))
    assert type(ours) is type(stock)
    assert {"AP", "APs", "AP-cat", "AP-dog"} < set(ours["bbox"])
    assert 0 < ours["bbox"]["AP50"] < 100
    assert_same(ours, stock)

    files = {path.name for path in (tmp_path / "ours").iterdir()}
    assert files == {path.name for path in (tmp_path / "stock").iterdir()} | {
        "evaluation.json",
        "evaluation.md",
    }
    results = "coco_instances_results.json"
    assert (tmp_path / "ours" / results).read_text() == (tmp_path / "stock" / results).read_text()


def test_curves_and_rows_hold_the_ap_of_each_class(tiny, tmp_path):
    results = evaluate(COCOEvaluator(NAME, output_dir=str(tmp_path)))["bbox"]
    content = json.loads((tmp_path / "evaluation.json").read_text())
    rows, curves = content["classes"], content["precision_curves"]
    assert [x["class"] for x in rows] == ["cat", "dog"]
    assert [x["AP"] for x in rows] == pytest.approx([results["AP-cat"], results["AP-dog"]])
    assert np.mean([x["AP50"] for x in rows]) == pytest.approx(results["AP50"])
    assert np.shape(curves["by_iou"]) == (10, 101)
    assert np.mean(curves["by_iou"]) == pytest.approx(results["AP"], abs=0.005)
    at_half = [x["AP50"] for x in rows]
    assert np.mean(curves["by_class"], axis=1) == pytest.approx(at_half, abs=0.005)


def test_a_subset_of_the_models_classes_is_explained_alone(tiny, tmp_path):
    """The model's classes are dog, bird, cat; what it takes for a bird counts nothing."""
    selector = ClassSelector(COCOEvaluator(NAME, output_dir=str(tmp_path)), [1, -1, 0])
    selector.reset()
    for image_id in range(1, 7):
        outputs = outputs_of(image_id)
        outputs["instances"].pred_classes[:] = torch.arange(9) % 3
        selector.process([{"image_id": image_id}], [outputs])
    selector.evaluate()
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert [x["class"] for x in content["classes"]] == ["cat", "dog"]
    assert content["calibration"]["num_detections"] == 6 * 6


@pytest.mark.usefixtures("library")
def test_ap_beyond_100_detections_has_a_name_of_its_own(tiny, tiny_coco, tmp_path):
    def of(evaluator):
        """250 detections an image; half of the objects are found by the 151st."""
        evaluator.reset()
        for image_id, (left, top, width, height) in objects.items():
            boxes = torch.rand(250, 4, generator=torch.Generator().manual_seed(image_id)) * 30
            boxes[:, 2:] += boxes[:, :2] + 1
            box = torch.tensor([left, top, left + width, top + height])
            boxes[150 if image_id > 3 else 50] = box
            instances = Instances((64, 64), pred_boxes=Boxes(boxes))
            instances.scores = torch.linspace(1, 0.1, 250)
            instances.pred_classes = torch.tensor([(image_id + 1) % 2]).expand(250)
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        return evaluator.evaluate()["bbox"]

    annotations = json.loads(tiny_coco[0].read_text())["annotations"]
    objects = {x["image_id"]: x["bbox"] for x in annotations}
    stock = {
        n: of(StockEvaluator(NAME, max_dets_per_image=n, output_dir=str(tmp_path)))
        for n in (100, 300)
    }
    ours = of(build_evaluator(NAME, str(tmp_path), max_dets=300))
    assert ours.pop("AP@300") == pytest.approx(stock[300]["AP"], abs=1e-12)
    assert_same({"bbox": ours}, {"bbox": stock[100]})
    assert ours["AP"] != stock[300]["AP"]
    at_most_100 = of(build_evaluator(NAME, str(tmp_path), max_dets=50))
    assert_same({"bbox": at_most_100}, {"bbox": stock[100]})


@pytest.mark.usefixtures("library", "tiny")
def test_nothing_found_is_an_ap_of_0(tmp_path, caplog):
    """As in a sweep; NaN, as in Detectron2, is for sizes and classes without objects."""
    nothing = Instances((64, 64))
    nothing.pred_boxes = Boxes(torch.zeros(0, 4))
    nothing.scores, nothing.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    evaluator = COCOEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    assert evaluator.evaluate() == {}
    evaluator.process([{"image_id": 1}], [{"instances": nothing}])
    results = evaluator.evaluate()["bbox"]
    assert [results[x] for x in ("AP", "AP50", "AP75", "APs", "AP-cat", "AP-dog")] == [0] * 6
    assert np.isnan([results["APm"], results["APl"]]).all()
    assert "the model found nothing" in caplog.text


@pytest.mark.parametrize(
    "changes", [{}, *({"area": x} for x in (None, float("nan"), "784", 0, 1, -1, True, 10**400))]
)
def test_annotations_without_iscrowd_and_of_no_or_a_false_area(tiny, tiny_coco, changes, caplog):
    expected = evaluate(COCOEvaluator(NAME))
    content = json.loads(tiny_coco[0].read_text())
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
        annotation.update(changes)
    tiny_coco[0].write_text(json.dumps(content))
    assert_same(evaluate(COCOEvaluator(NAME)), expected)
    assert '6 annotations have no "area", or a false one' in caplog.text


def test_images_that_could_not_be_read_count_neither_way(tiny, caplog):
    expected = evaluate(COCOEvaluator(NAME), image_ids=(1, 2, 4, 5, 6), img_ids=[1, 2, 4, 5, 6])
    evaluator = COCOEvaluator(NAME)
    evaluator.reset()
    for image_id in range(1, 7):
        sample = {"image_id": image_id, "is_unreadable": image_id == 3}
        evaluator.process([sample], [outputs_of(image_id)])
    results = evaluator.evaluate()
    assert results["bbox"].pop("unreadable_images") == 1
    assert_same(results, expected)
    assert "1 images could not be read" in caplog.text


def test_without_annotations_the_results_are_written(tiny, tiny_coco, tmp_path):
    """As COCO's test-dev."""
    content = json.loads(tiny_coco[0].read_text())
    del content["annotations"]
    tiny_coco[0].write_text(json.dumps(content))
    assert evaluate(COCOEvaluator(NAME, output_dir=str(tmp_path))) == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 6 * 9


def test_a_set_without_a_json_is_evaluated_as_it_is_now(tmp_path):
    for num_images in (3, 1):  # as in two processes
        records = [{"file_name": "", "image_id": i, "height": 64, "width": 64} for i in range(3)]
        records = [{**x, "annotations": []} for x in records[:num_images]]
        DatasetCatalog.register("corrected", lambda records=records: records)
        MetadataCatalog.get("corrected").set(thing_classes=["cat"], evaluator_type="coco")
        evaluator = build_evaluator("corrected", str(tmp_path))
        assert len(evaluator._coco_api.imgs) == num_images
        DatasetCatalog.remove("corrected")
        MetadataCatalog.remove("corrected")


def test_more_classes_than_the_data_set_has(tiny):
    MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id.pop(8)
    with pytest.raises(ValueError, match=f"class 1, but {NAME} has 1 classes.*NUM_CLASSES"):
        evaluate(COCOEvaluator(NAME))


def test_another_type_is_an_error_that_says_what_to_do(tmp_path):
    MetadataCatalog.get("streets").evaluator_type = "cityscapes_instance"
    with pytest.raises(ValueError, match="'cityscapes_instance'.*override Trainer.build_evaluator"):
        build_evaluator("streets", str(tmp_path))


@pytest.mark.skipif(not COCO_SAMPLE.is_dir(), reason="the sample of COCO val2014 is not there")
def test_cocos_own_example():
    """AP .505 and AP50 .697 are what the COCO API's demo shows for these detections."""
    coco_api = COCO(str(COCO_SAMPLE / "instances_val2014_100.json"))
    results = COCO_SAMPLE / "instances_val2014_fakebbox100_results.json"
    stats = evaluate_boxes(coco_api, json.loads(results.read_text())).stats
    assert stats[0] == pytest.approx(0.505, abs=5e-4)
    assert stats[1] == pytest.approx(0.697, abs=5e-4)
