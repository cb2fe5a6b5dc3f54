"""Spoiled data sets: each fault is an error that says where, or is counted; none goes unseen.

What passes, or remains after leaving out, is read by Detectron2's loader and mapper and labelled
without an exception.
"""

import copy
import json
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import Boxes
from helpers import default_cfg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focal_retina.data import register_coco_json
from focal_retina.dataset_check import build_record_filter, check_dataset, check_datasets
from focal_retina.modeling import anchor_labeling

SIZE = 32
NAME = "spoiled"

_NUMBER = st.floats(-40, 80)
_SIDE = st.floats(1, 30)
_NOT_FINITE = st.sampled_from([float("nan"), float("inf"), float("-inf")])
_JUNK = st.sampled_from([None, True, "x", "", [], {}, [1], {"a": 1}, 10**400, [[]], -1.5])


def annotation_of(content, data):
    return data.draw(st.sampled_from(content["annotations"]))


def image_of(content, data):
    return data.draw(st.sampled_from(content["images"]))


def box_not_finite(content, data, folder):
    box = annotation_of(content, data)["bbox"]
    box[data.draw(st.integers(0, 3))] = data.draw(_NOT_FINITE)


def negative_size(content, data, folder):
    annotation_of(content, data)["bbox"][data.draw(st.sampled_from([2, 3]))] = -data.draw(_SIDE)


def zero_area(content, data, folder):
    annotation_of(content, data)["bbox"][data.draw(st.sampled_from([2, 3]))] = 0


def box_outside(content, data, folder):
    far = SIZE + data.draw(st.floats(0, 1e30))
    annotation_of(content, data)["bbox"][data.draw(st.sampled_from([0, 1]))] = far


def unknown_category(content, data, folder):
    annotation_of(content, data)["category_id"] = data.draw(
        st.integers(3) | st.integers(max_value=0)
    )


def unknown_image(content, data, folder):
    annotation_of(content, data)["image_id"] = data.draw(st.text(max_size=3) | st.integers(9))


def duplicate_annotation_id(content, data, folder):
    content["annotations"].append(dict(annotation_of(content, data)))


def duplicate_image_id(content, data, folder):
    content["images"].append({**image_of(content, data), "file_name": "other.png"})


def missing_image(content, data, folder):
    image_of(content, data)["file_name"] = data.draw(st.text(min_size=1, max_size=5)) + ".gif"


def image_size(content, data, folder):
    side = data.draw(st.sampled_from(["width", "height"]))
    image_of(content, data)[side] = data.draw(st.integers(max_value=0))


def wrong_size(content, data, folder):
    side = data.draw(st.sampled_from(["width", "height"]))
    image_of(content, data)[side] = data.draw(st.integers(SIZE + 1, 10**40))


def unreadable_image(content, data, folder):
    whole = (folder / "1.png").read_bytes()
    image = image_of(content, data)
    image["file_name"] = "broken.png"
    junk = data.draw(st.binary(max_size=30) | st.integers(0, 60).map(lambda n: whole[:n]))
    (folder / "broken.png").write_bytes(junk)


def malformed(content, data, folder):
    section = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = data.draw(st.sampled_from(content[section]))
    field = data.draw(st.sampled_from(sorted(set(entry) - {"name", "file_name"})))
    if data.draw(st.booleans()):
        del entry[field]
    else:
        entry[field] = data.draw(_JUNK.filter(lambda x: not isinstance(x, str)))


def not_coco(content, data, folder):
    content[data.draw(st.sampled_from(["images", "annotations", "categories"]))] = data.draw(
        _JUNK.filter(lambda x: not isinstance(x, list))
    )


# fmt: off
FAULTS = [
    box_not_finite, negative_size, zero_area, box_outside, unknown_category, unknown_image,
    duplicate_annotation_id, duplicate_image_id, missing_image, image_size, wrong_size,
    unreadable_image, malformed, not_coco,
]
# fmt: on
CONTENT = {
    "images": [
        {"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in (1, 2, 3)
    ],
    "annotations": [
        {"id": i, "image_id": 1 + i % 3, "category_id": 1 + i % 2, "bbox": [2.0 * i, 3, 9, 8]}
        for i in range(1, 7)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in (1, 2, 3):
        pixels = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
    return folder


@pytest.fixture
def cfg():
    return default_cfg("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", "skip", "DATASETS.TRAIN", (NAME,))


def train_on(cfg, records):
    """What a training does with the data before the network sees them."""
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    labeler = anchor_labeling.AnchorLabeler(num_classes=2)
    anchors = [Boxes(torch.tensor([[0.0, 0, 16, 16], [16, 16, 32, 32]]))]
    for record in records:
        instances = mapper(copy.deepcopy(record))["instances"]
        anchor_labeling.check_gt_instances([instances], 2)
        labels, _ = labeler(anchors, [instances])
        assert ((labels >= -1) & (labels <= 2)).all()


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_fault_goes_unseen(data, folder, cfg, tmp_path, catalogs):
    content = copy.deepcopy(CONTENT)
    fault = data.draw(st.sampled_from(FAULTS))
    fault(content, data, folder)
    json_file = tmp_path / "set.json"
    json_file.write_text(json.dumps(content))
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)
    try:
        register_coco_json(NAME, str(json_file), str(folder))
        report = check_dataset(NAME, num_decoded=-1)
    except ValueError as error:
        assert fault in (malformed, not_coco)
        assert re.search(r'set\.json.*("\w+"|\w+\[\d\])', str(error))  # noqa: PT017
        return

    found = {finding.check.name: finding for finding in report.findings}
    if fault is not malformed:  # which may have made, say, an unknown category of a known one
        assert fault.__name__ in found
    for finding in found.values():
        assert finding.count >= len(finding.cases) >= 1
        assert all(str(case) for case in finding.cases)

    errors = report.of_degree("error")
    if errors:
        with pytest.raises(ValueError, match="data set 'spoiled'"):
            check_datasets([NAME], [], mode="error", num_decoded=-1)
    if all(finding.check.skipped for finding in errors):
        check_datasets([NAME], [], mode="skip", num_decoded=-1)
        train_on(cfg, build_record_filter(cfg)(DatasetCatalog.get(NAME)))
