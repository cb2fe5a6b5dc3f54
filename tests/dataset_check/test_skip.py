"""Leaving out of a training what the data check found unusable."""

import itertools
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from helpers import default_cfg

from focal_retina.dataset_check import build_record_filter, check_datasets, report


def skipping(filter_empty=True):
    node = "MODEL.FOCAL_RETINA.DATA_CHECK"
    options = {f"{node}.MODE": "skip", f"{node}.NUM_DECODED": -1, "DATASETS.TRAIN": ("tiny",)}
    options["DATALOADER.FILTER_EMPTY_ANNOTATIONS"] = filter_empty
    return default_cfg(*itertools.chain(*options.items()))


def test_skip_leaves_out_and_counts(register, caplog):
    def change(content):
        content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
        content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [1, 1, 9, 9]})
        content["annotations"][1]["bbox"] = [5, 5, -3, 4]
        content["images"][4]["width"] = 99

    folder = register(change)
    (folder / "5.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="DATA_CHECK.MODE skip"):
        check_datasets(["tiny"], [], mode="error", num_decoded=-1)
    check_datasets(["tiny"], [], mode="skip", num_decoded=-1)

    records = DatasetCatalog.get("tiny")
    kept = build_record_filter(skipping(filter_empty=False))(records)
    assert [Path(x["file_name"]).name for x in kept] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [len(x["annotations"]) for x in kept] == [1, 0, 1, 1]
    assert len(records[0]["annotations"]) == 2  # the records given are as they were
    assert "images that can't be used: 2" in caplog.text
    assert "boxes of negative width or height: 1" in caplog.text
    # Without its only object, an image is one of those that FILTER_EMPTY_ANNOTATIONS takes away.
    assert len(build_record_filter(skipping())(records)) == 3


def test_skip_does_not_mend_everything(register):
    register(lambda content: content["annotations"][0].update(id=2))
    with pytest.raises(ValueError, match="annotations with the same id: 1") as error:
        check_datasets(["tiny"], [], mode="skip", num_decoded=0)
    assert "skip" not in str(error.value)


def test_nothing_is_left_out_unless_asked_for(register):
    register(lambda content: content["annotations"][2].update(bbox=[1, 2, float("nan"), 4]))
    cfg = skipping()
    cfg.MODEL.FOCAL_RETINA.DATA_CHECK.MODE = "error"
    records = DatasetCatalog.get("tiny")
    assert build_record_filter(cfg)(records) is records


def test_nothing_remains(register):
    folder = register()
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no usable image remains"):
        build_record_filter(skipping())(DatasetCatalog.get("tiny"))


def test_other_processes_take_over_what_the_main_one_found(register, monkeypatch):
    folder = register()
    monkeypatch.setattr(report.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(report.comm, "all_gather", lambda _: [{str(folder / "3.jpg")}, None])
    kept = build_record_filter(skipping())(DatasetCatalog.get("tiny"))
    assert [Path(x["file_name"]).stem for x in kept] == ["0", "1", "2", "4", "5"]
