"""Which detections stand beside which ground truth."""

import itertools

import pytest
from detectron2.structures import BoxMode

from focal_retina.analysis.detections import LabeledBox, break_even_threshold, compare_images


def record(image_id, *annotations):
    return {
        "file_name": f"{image_id}.jpg",
        "image_id": image_id,
        "width": 40,
        "height": 30,
        "annotations": [
            {"category_id": label, "bbox": box, "bbox_mode": mode}
            for label, box, mode in annotations
        ],
    }


def prediction(image_id, category_id, score, box=(0, 0, 2, 3)):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def test_boxes_labels_and_order():
    dataset_dicts = [
        record(7, (1, [1, 2, 3, 4], BoxMode.XYWH_ABS), (0, [1, 2, 3, 4], BoxMode.XYXY_ABS))
    ]
    predictions = [
        prediction(7, 20, 0.3),
        prediction(7, 10, 0.9, (5, 6, 7, 8)),
        prediction(7, 10, 0.1),
        prediction(8, 10, 1.0),
    ]
    (comparison,) = compare_images(
        dataset_dicts, predictions, {10: 0, 20: 1}, max_images=5, score_threshold=0.3
    )
    assert comparison.file_name == "7.jpg" and comparison.size == (40, 30)
    assert comparison.ground_truth == [LabeledBox(1, (1, 2, 4, 6)), LabeledBox(0, (1, 2, 3, 4))]
    assert comparison.detections == [
        LabeledBox(0, (5, 6, 12, 14), 0.9),
        LabeledBox(1, (0, 0, 2, 3), 0.3),
    ]


def test_without_a_mapping_categories_are_labels():
    (comparison,) = compare_images(
        [record(1)], [prediction(1, 4, 0.5)], None, max_images=1, score_threshold=0
    )
    assert comparison.detections[0].label == 4


@pytest.mark.parametrize("num_records, max_images", [(10, 4), (3, 4), (0, 4), (100, 12)])
def test_images_are_spread_evenly(num_records, max_images):
    comparisons = compare_images(
        [record(i) for i in range(num_records)], [], None, max_images=max_images, score_threshold=0
    )
    ids = [int(c.file_name[:-4]) for c in comparisons]
    assert len(ids) == min(num_records, max_images)
    steps = {b - a for a, b in itertools.pairwise(ids)}
    assert not steps or max(steps) - min(steps) <= 1


def test_break_even_shows_as_many_detections_as_objects():
    box = (0, [0, 0, 1, 1], BoxMode.XYWH_ABS)
    dataset_dicts = [record(1, box, box), record(2, box)]
    dataset_dicts[1]["annotations"].append({**dataset_dicts[1]["annotations"][0], "iscrowd": 1})
    predictions = [prediction(1, 0, score) for score in (0.2, 0.9, 0.4, 0.6, 0.1)]
    threshold = break_even_threshold(predictions, dataset_dicts)
    assert threshold == 0.4
    assert break_even_threshold(predictions[:2], dataset_dicts) == 0.2
    assert break_even_threshold([], dataset_dicts) == 1.0
    assert break_even_threshold(predictions, [record(1)]) == 1.0
