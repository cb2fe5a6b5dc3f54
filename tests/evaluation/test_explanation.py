"""What explains an evaluation, against small references of our own, of pycocotools' matches: also
with crowds, ties of scores, classes without objects and images without anything."""

import copy
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import iou as pairwise_iou

from benchmarks.evaluation import Size, make_data
from focal_retina.evaluation.box_metrics import evaluate_boxes
from focal_retina.evaluation.explanation import explain, write_explanation


def made(seed=1, images=8, detections=15, classes=3, digits=2, crowd_share=0.2):
    """Data in which the first two images are without objects, and the second without anything."""
    size = Size(images, detections, classes)
    api, found = make_data(size, seed=seed, score_digits=digits, crowd_share=crowd_share)
    found = [x for x in found if x["image_id"] != 2]
    objects = api.dataset["annotations"]
    api.dataset["annotations"] = [x for x in objects if x["image_id"] > 2]
    api.createIndex()
    return api, found


def explained_of(api, found):
    return explain(evaluate_boxes(api, found), [x["name"] for x in api.dataset["categories"]])


def judged(api, found):
    """pycocotools' "tp" or "fp" of each detection; None: ignored."""
    reference = COCOeval(api, api.loadRes(copy.deepcopy(found)), "bbox")
    reference.evaluate()
    judgements = [None] * len(found)
    for x in filter(None, reference.evalImgs):
        if x["aRng"] == [0, 1e10]:
            matches = zip(x["dtIds"], x["dtMatches"][0], x["dtIgnore"][0], strict=True)
            for i, match, is_ignored in matches:
                judgements[i - 1] = None if is_ignored else "tp" if match else "fp"
    return judgements


def objects_of(api, **wanted):
    return [
        x
        for x in api.dataset["annotations"]
        if not x["iscrowd"] and all(x[key] == value for key, value in wanted.items())
    ]


def f1_at(threshold, api, found, judgements, category):
    kept = [
        judgement
        for x, judgement in zip(found, judgements, strict=True)
        if judgement and x["category_id"] == category and x["score"] >= threshold
    ]
    return 200 * kept.count("tp") / (len(kept) + len(objects_of(api, category_id=category)))


def overlaps(found, objects):
    """(D, G), by pycocotools."""
    boxes = ([x["bbox"] for x in y] for y in (found, objects))
    iou = np.array(pairwise_iou(*boxes, [0] * len(objects)), float)
    return iou.reshape(len(found), len(objects))


random_data = given(
    seed=st.integers(0, 10**6),
    images=st.integers(3, 8),
    detections=st.integers(1, 12),
    classes=st.integers(1, 5),
    digits=st.integers(1, 3),
    crowd_share=st.floats(0, 1),
)


@settings(max_examples=15, deadline=None)
@example(seed=0, images=6, detections=12, classes=2, digits=1, crowd_share=0.0)
@random_data
def test_thresholds_of_the_best_f1(**options):
    api, found = made(**options)
    explained, judgements = explained_of(api, found), judged(api, found)
    grid = explained["f1_curves"]["threshold"]
    scores, f1, curves = sorted({x["score"] for x in found}), [], []
    for i, row in enumerate(explained["classes"]):
        count = len(objects_of(api, category_id=i + 1))
        assert row["objects"] == count
        if not count:
            assert row["AP"] is row["threshold"] is explained["f1_curves"]["by_class"][i] is None
            continue
        f1.append([f1_at(x, api, found, judgements, i + 1) for x in scores])
        curves.append([f1_at(x, api, found, judgements, i + 1) for x in grid])
        np.testing.assert_allclose(explained["f1_curves"]["by_class"][i], curves[-1], atol=0.0051)
        if row["threshold"] is None:
            assert max(f1[-1]) == 0
        else:
            assert row["F1"] == pytest.approx(max(f1[-1]))
            assert f1_at(row["threshold"], api, found, judgements, i + 1) == pytest.approx(
                row["F1"]
            )
            share = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
            assert share == pytest.approx(row["F1"])
    if explained["threshold"] is None:
        assert not np.any(f1)
    else:
        mean = np.mean(f1, axis=0)
        assert explained["F1"] == pytest.approx(mean.max())
        at_best = mean[np.searchsorted(scores, explained["threshold"])]
        assert at_best == pytest.approx(mean.max())
        np.testing.assert_allclose(
            explained["f1_curves"]["mean"], np.mean(curves, axis=0), atol=0.0051
        )


@settings(max_examples=15, deadline=None)
@random_data
def test_confusion_matrix(**options):
    """The best detection takes the object that it overlaps most, whatever their classes."""
    api, found = made(**options)
    explained, judgements = explained_of(api, found), judged(api, found)
    num_classes = len(api.dataset["categories"])
    expected = np.zeros((num_classes + 1, num_classes + 1), int)
    for image_id in api.imgs:
        objects = objects_of(api, image_id=image_id)
        pairs = zip(found, judgements, strict=True)
        own = [x for x, y in pairs if y and x["image_id"] == image_id]
        own = [x for x in own if x["score"] >= (explained["threshold"] or 0)]
        own.sort(key=lambda x: -x["score"])
        iou = overlaps(own, objects)
        for i, x in enumerate(own):
            taken = iou[i].argmax() if objects and iou[i].max() >= 0.5 else None
            label = num_classes if taken is None else objects[taken]["category_id"] - 1
            expected[label, x["category_id"] - 1] += 1
            iou[:, [] if taken is None else taken] = -1
        for g, x in enumerate(objects):
            if not len(own) or iou[0, g] != -1:
                expected[x["category_id"] - 1, -1] += 1
    np.testing.assert_array_equal(explained["confusion_matrix"], expected)


@settings(max_examples=15, deadline=None)
@random_data
def test_calibration(**options):
    api, found = made(**options)
    pairs = zip(found, judged(api, found), strict=True)
    counted = [(x["score"], y == "tp") for x, y in pairs if y]
    error = 0.0
    for i, bin_ in enumerate(explained_of(api, found)["calibration"]["bins"]):
        own = [x for x in counted if min(9, int(10 * x[0])) == i]
        assert bin_["count"] == len(own)
        if own:
            score, share = np.mean(own, axis=0)
            assert (bin_["avg_confidence"], bin_["avg_accuracy"]) == pytest.approx((score, share))
            error += len(own) / len(counted) * abs(score - share)
    assert explained_of(api, found)["calibration"]["ece"] == pytest.approx(error)


@settings(max_examples=15, deadline=None)
@random_data
def test_errors(**options):
    """TIDE's kinds, section 2 of the paper; a kind costs what AP50 gains where it is taken away."""
    api, found = made(**options)
    errors = explained_of(api, found)["errors"]
    kinds = []
    for x, judgement in zip(found, judged(api, found), strict=True):
        objects = objects_of(api, image_id=x["image_id"])
        iou = overlaps([x], objects)[0]
        is_same = np.array([y["category_id"] == x["category_id"] for y in objects], bool)
        same, other = iou[is_same].max(initial=0), iou[~is_same].max(initial=0)
        kind = None
        if judgement == "fp":
            if same >= 0.5:
                kind = "Dupe"
            elif same >= 0.1:
                kind = "Loc"
            elif other >= 0.5:
                kind = "Cls"
            else:
                kind = "Both" if other >= 0.1 else "Bkg"
        kinds.append(kind)
    for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg"):
        assert errors["counts"][kind] == kinds.count(kind)
    base = evaluate_boxes(api, found).stats[1]
    assert errors["ap_base"] == pytest.approx(max(0, base))
    for kind in ("Both", "Dupe", "Bkg"):
        rest = [x for x, y in zip(found, kinds, strict=True) if y != kind]
        gain = evaluate_boxes(api, rest).stats[1] - base
        assert errors["delta_ap"][kind] == pytest.approx(gain, abs=1e-9)


def test_costs_of_errors_that_are_mended_by_hand():
    """Of three classes one object has half of its box, one another class, one of two nothing."""
    api, _ = made()
    boxes = [[0.0, 100.0 * i, 100.0, 50.0] for i in range(4)]
    truth, labels = {"image_id": 1, "area": 5000, "iscrowd": 0}, (1, 2, 3, 3)
    objects = zip(range(1, 5), labels, boxes, strict=True)
    api.dataset["annotations"] = [
        {**truth, "id": i, "category_id": label, "bbox": box} for i, label, box in objects
    ]
    api.createIndex()
    detections = (3, boxes[2]), (1, [0.0, 0.0, 40.0, 50.0]), (1, boxes[1])
    found = [
        {"image_id": 1, "category_id": label, "bbox": box, "score": 0.9 - 0.1 * i}
        for i, (label, box) in enumerate(detections)
    ]
    errors = explained_of(api, found)["errors"]
    assert {x: n for x, n in errors["counts"].items() if n} == {"Loc": 1, "Cls": 1, "Miss": 1}
    half = 51 / 101
    assert errors["ap_base"] == pytest.approx(half / 3)
    costs = {x: errors["delta_ap"][x] for x in ("Loc", "Cls", "Miss")}
    assert costs == pytest.approx({"Loc": 1 / 3, "Cls": 1 / 3, "Miss": (1 - half) / 3})


def test_files_and_console(tmp_path, caplog):
    api, found = made(images=40, classes=25, crowd_share=0.0)
    names = [f"a|b {i}" for i in range(25)]
    caplog.set_level("INFO", logger="focal_retina")
    write_explanation(evaluate_boxes(api, found), names, "birds", tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["dataset"] == "birds" and len(content["classes"]) == 25
    assert (tmp_path / "evaluation.md").read_text().count(r"| a\|b ") == 25
    worst = sorted(x["AP"] for x in content["classes"])
    shown = [x.split("|")[4] for x in caplog.text.splitlines() if x.startswith(r"| a\|b ")]
    assert [float(x) for x in shown] == [pytest.approx(x, abs=0.051) for x in worst[:20]]
    assert f"threshold {content['threshold']:.3f}" in caplog.text
    assert f"all: {tmp_path}/evaluation.md" in caplog.text
