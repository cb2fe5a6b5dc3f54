"""The data check of sets that are no COCO files."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from focal_retina.dataset_check import check_dataset, check_datasets


def records(*boxes, **changes):
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in boxes]
    record = {"file_name": "none.jpg", "width": 64, "height": 64, "annotations": annotations}
    return [{**record, **changes}]


def register_records(content, classes=("cat",)):
    DatasetCatalog.register("mine", lambda: content)
    MetadataCatalog.get("mine").thing_classes = list(classes)


def test_records_of_a_loader_of_ones_own():
    register_records(records([1, 2, 5, 9], [5, 5, 3, 9]))
    report = check_dataset("mine", num_decoded=0)
    assert [finding.check.name for finding in report.findings] == ["missing_image", "negative_size"]
    assert report.table.class_counts.tolist() == [2]


@pytest.mark.parametrize(
    "content, message",
    [
        ([{"file_name": "a.jpg"}], "lacks file_name or annotations.*KeyError.'annotations'"),
        (records([1, 2, 3]), "can't be read .ValueError"),
        ([{"file_name": "a.jpg", "annotations": [{}]}], "KeyError.'bbox'"),
    ],
)
def test_records_that_are_none(content, message):
    register_records(content)
    with pytest.raises(ValueError, match=f"data set 'mine'.*{message}"):
        check_dataset("mine", num_decoded=0)


def test_a_torch_data_set_is_not_checked(caplog):
    register_records(iter([]))
    check_datasets(["mine"], [], mode="error", num_decoded=0)
    assert "'mine' is a list_iterator, not a list: it is not checked" in caplog.text
