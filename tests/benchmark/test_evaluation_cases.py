"""What the evaluation benchmark measures: a made-up test set, and candidates that agree."""

import numpy as np
import pytest
import torch

from focal_retina.benchmark import evaluation
from focal_retina.benchmark.evaluation import Size, make_data


def test_every_candidate_does_the_whole_job(monkeypatch):
    results = {}

    def record(function, *data):
        results.setdefault(function.__name__, []).append(function(*data))

    monkeypatch.setattr(evaluation, "COMPARED", (Size(3, 5, 2),))
    monkeypatch.setattr(evaluation, "_silently", record)
    ((title, candidates),) = evaluation.comparison_cases(torch.device("cpu"))
    assert title == "3 images × 5 detections × 2 classes"
    names = list(candidates)
    assert names[:2] == ["ours", "pycocotools"]
    for _ in range(2):  # no candidate spoils the data for the next one
        for candidate in candidates.values():
            candidate()
    assert len(results) == len(candidates)
    for first, second in results.values():
        np.testing.assert_array_equal(first.stats, second.stats)
        np.testing.assert_allclose(first.stats, results["evaluate_boxes"][0].stats, atol=1e-12)


def test_scaling_cases_grow_one_thing_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluation, "SCALING", (Size(2, 3, 1), Size(4, 3, 1)))
    titles = [title for title, _ in evaluation.scaling_cases(torch.device("cpu"))]
    assert titles == ["2 images × 3 detections × 1 classes", "4 images × 3 detections × 1 classes"]


@pytest.mark.parametrize("seed", [0, 1])
def test_data_have_what_was_asked_for(seed):
    size = Size(30, 20, 5)
    coco_api, detections = make_data(size, seed=seed, crowd_share=0.5, score_digits=1)
    again = make_data(size, seed=seed, crowd_share=0.5, score_digits=1)
    assert again[1] == detections and again[0].dataset == coco_api.dataset
    assert len(detections) == 30 * 20
    assert {d["category_id"] for d in detections} == {1, 2, 3, 4, 5}
    assert len({d["score"] for d in detections}) <= 11
    crowds = [a["iscrowd"] for a in coco_api.dataset["annotations"]]
    assert 0.3 < np.mean(crowds) < 0.7
    areas = np.array([a["area"] for a in coco_api.dataset["annotations"]])
    assert (areas < 32**2).any() and (areas > 96**2).any()
