"""Box metrics against pycocotools: precision, recall and the 12 numbers, to the last bit."""

import copy

import numpy as np
import pytest
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from benchmarks.evaluation import Size, make_data
from focal_retina.evaluation.box_metrics import evaluate_boxes


def by_pycocotools(coco_api, detections, max_dets=(1, 10, 100), image_ids=None):
    evaluator = COCOeval if max_dets[-1] == 100 else COCOevalMaxDets
    detected = coco_api.loadRes(copy.deepcopy(detections))
    reference = evaluator(coco_api, detected, "bbox")
    reference.params.maxDets = list(max_dets)
    if image_ids is not None:
        reference.params.imgIds = list(image_ids)
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    return reference


def assert_equals_pycocotools(coco_api, detections, caplog=None, **options):
    ours = evaluate_boxes(coco_api, detections, **options)
    if caplog is not None:
        assert "pycocotools evaluates" not in caplog.text
    reference = by_pycocotools(coco_api, detections, **options)
    assert len(ours.stats) == 12
    np.testing.assert_allclose(ours.stats, reference.stats, rtol=0, atol=1e-12)
    for name in ("precision", "recall", "scores"):  # by class, among others
        np.testing.assert_array_equal(ours.eval[name], reference.eval[name])
    return ours


@pytest.mark.parametrize(
    "size, options",
    [(Size(60, 20, 80), {"seed": 2, "crowd_share": 0.3}), (Size(4, 250, 1), {"seed": 4})],
    ids=["crowds and absent classes", "more than 100 detections"],
)
def test_generated_sets(size, options, caplog):
    ours = assert_equals_pycocotools(*make_data(size, **options), caplog)
    assert 0 < ours.stats[0] < 1
    assert set(ours.stats[3:6]).isdisjoint({-1})  # all three sizes occur


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 6),
    detections=st.integers(1, 12),
    classes=st.integers(1, 4),
    digits=st.integers(0, 3),
    crowd_share=st.floats(0, 1),
)
def test_any_small_set(seed, images, detections, classes, digits, crowd_share):
    size = Size(images, detections, classes)
    data = make_data(size, seed=seed, score_digits=digits, crowd_share=crowd_share)
    assert_equals_pycocotools(*data)


@pytest.mark.parametrize(
    "image_ids",
    [
        [f"street {i % 7}/{i}" for i in range(12)],
        [2**60 + 3 * i for i in range(12)],
        [5 - i for i in range(12)],
    ],
    ids=["strings", "large", "zero and negative"],
)
def test_image_ids_may_be_anything(image_ids, caplog):
    data = make_data(Size(12, 20, 2), score_digits=1, image_ids=image_ids)
    assert assert_equals_pycocotools(*data, caplog).stats[0] > 0


@pytest.mark.parametrize("max_dets", [(1, 10, 300), (1, 10, 20)])
def test_another_limit_of_detections_is_summarized_as_detectron2_does(max_dets, caplog):
    data = make_data(Size(5, 250, 1))
    assert assert_equals_pycocotools(*data, caplog, max_dets=max_dets).stats[0] > 0


def test_some_of_the_images(caplog):
    coco_api, detections = make_data(Size(20, 20, 3))
    ours = assert_equals_pycocotools(coco_api, detections, caplog, image_ids=[3, 17, 4, 9])
    assert ours.stats[0] != evaluate_boxes(coco_api, detections).stats[0]


@pytest.mark.parametrize("crowds_only", [True, False])
def test_nothing_to_find(crowds_only, caplog):
    coco_api, detections = make_data(Size(8, 20, 2), crowd_share=1)
    if not crowds_only:
        coco_api.dataset["annotations"] = []
        coco_api.createIndex()
    ours = assert_equals_pycocotools(coco_api, detections, caplog)
    assert set(ours.stats) == {-1}


def test_entries_of_unknown_categories_and_images_count_nothing(caplog):
    coco_api, detections = make_data(Size(8, 20, 2))
    detections[5]["category_id"] = 77
    annotations = coco_api.dataset["annotations"]
    annotations[0]["category_id"], annotations[1]["image_id"] = 99, 1234
    coco_api.createIndex()
    assert_equals_pycocotools(coco_api, detections, caplog)


def test_detection_of_an_unknown_image_is_an_error_that_names_it():
    coco_api, detections = make_data(Size(3, 5, 2))
    detections[4]["image_id"] = "elsewhere"
    with pytest.raises(ValueError, match="'elsewhere'.*another data set"):
        evaluate_boxes(coco_api, detections)


@pytest.mark.parametrize("field, value", [("score", np.nan), ("bbox", [1.0, 2.0, np.inf, 3.0])])
def test_numbers_that_are_not_finite_are_left_to_pycocotools_with_a_warning(field, value, caplog):
    coco_api, detections = make_data(Size(6, 20, 2))
    detections[7][field] = value
    assert_equals_pycocotools(coco_api, detections)
    assert "pycocotools" in caplog.text and "not finite" in caplog.text


def test_a_panic_in_the_library_is_survived(monkeypatch, caplog):
    """Rust's panics are no subclass of Exception."""

    class Panic(BaseException):
        pass

    def panic(*arguments, **options):
        raise Panic("index out of bounds")

    coco_api, detections = make_data(Size(6, 20, 2))
    monkeypatch.setattr("hotcoco.COCOeval", panic)
    assert_equals_pycocotools(coco_api, detections)
    assert "Panic: index out of bounds" in caplog.text


def test_annotation_of_id_0_is_matched_unlike_in_pycocotools(caplog):
    coco_api, _ = make_data(Size(1, 1, 1), seed=5)
    annotation = {**coco_api.dataset["annotations"][0], "id": 0, "iscrowd": 0}
    coco_api.dataset["annotations"] = [annotation]
    coco_api.createIndex()
    found = [{"image_id": 1, "category_id": 1, "bbox": annotation["bbox"], "score": 0.3}]
    assert evaluate_boxes(coco_api, found).stats[0] == pytest.approx(1)
    assert "id 0" in caplog.text
    assert by_pycocotools(coco_api, found).stats[0] == 0
