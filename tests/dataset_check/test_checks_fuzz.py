"""Spoiled data sets: the data check finds each fault. (No COCO json at all: test_coco_json.py.)

What passes, or remains after leaving out, is read by Detectron2's loader and mapper and labelled
without an exception.
"""

import copy
import json

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
SIDES = ("width", "height")
# By the check that finds it: a section, the field of an entry or the index in its box, new values
OVERWRITTEN = {
    "box_not_finite": ("annotations", range(4), st.sampled_from([np.nan, np.inf, -np.inf])),
    "negative_size": ("annotations", (2, 3), st.floats(-30, -1)),
    "zero_area": ("annotations", (2, 3), st.just(0)),
    "box_outside": ("annotations", (0, 1), st.floats(SIZE, 1e30)),
    "unknown_category": ("annotations", ["category_id"], st.integers(3) | st.integers(max_value=0)),
    "unknown_image": ("annotations", ["image_id"], st.text(max_size=3) | st.integers(9)),
    "missing_image": (
        "images",
        ["file_name"],
        st.text(min_size=1, max_size=5).map("{}.gif".format),
    ),
    "unreadable_image": ("images", ["file_name"], st.just("broken.png")),
    "image_size": ("images", SIDES, st.integers(max_value=0)),
    "wrong_size": ("images", SIDES, st.integers(SIZE + 1, 10**40)),
}
# And the section of which an entry is there twice, the second time with these fields
REPEATED = {
    "duplicate_annotation_id": ("annotations", {}),
    "duplicate_image_id": ("images", {"file_name": "other.png"}),
}


def spoil(content, folder, draw):
    """Make one fault; returns the name of the check that finds it."""
    check = draw(st.sampled_from([*OVERWRITTEN, *REPEATED]))
    section, *how = (OVERWRITTEN | REPEATED)[check]
    entry = draw(st.sampled_from(content[section]))
    if check in REPEATED:
        content[section].append(entry | how[0])
    else:
        key = draw(st.sampled_from(how[0]))
        (entry["bbox"] if isinstance(key, int) else entry)[key] = draw(how[1])
    if check == "unreadable_image":
        start = (folder / "1.png").read_bytes()[: draw(st.integers(0, 60))]
        (folder / "broken.png").write_bytes(draw(st.binary(max_size=30) | st.just(start)))
    return check


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
        sample = mapper(copy.deepcopy(record))
        anchor_labeling.check_ground_truth([sample], 2)
        labels, _ = labeler(anchors, [sample["instances"]])
        assert ((labels >= -1) & (labels <= 2)).all()


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_fault_goes_unseen(data, folder, cfg, tmp_path, catalogs):
    content = copy.deepcopy(CONTENT)
    fault = spoil(content, folder, data.draw)
    json_file = tmp_path / "set.json"
    json_file.write_text(json.dumps(content))
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)
    register_coco_json(NAME, str(json_file), str(folder))
    found = {x.check.name: x for x in check_dataset(NAME, num_decoded=-1).findings}
    assert fault in found
    for finding in found.values():
        assert finding.count >= len(finding.cases) >= 1
        assert all(str(case) for case in finding.cases)

    errors = [finding for finding in found.values() if finding.degree == "error"]
    if errors:
        with pytest.raises(ValueError, match="data set 'spoiled'"):
            check_datasets([NAME], [], mode="error", num_decoded=-1)
    if all(finding.check.skipped for finding in errors):
        check_datasets([NAME], [], mode="skip", num_decoded=-1)
        train_on(cfg, build_record_filter(cfg)(DatasetCatalog.get(NAME)))
