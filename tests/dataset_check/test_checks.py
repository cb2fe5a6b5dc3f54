"""The data check: each kind of finding and its degree."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from focal_retina.data import register_coco_json
from focal_retina.dataset_check import CHECKS, check_dataset, check_datasets
from focal_retina.dataset_check.checks import box_faults
from focal_retina.dataset_check.table import record_table

CENTERS = "[center x, center y, width, height]"
REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def found_in(report):
    return {finding.check.name: finding for finding in report.findings}


def check(num_decoded=-1):
    return check_dataset("tiny", num_decoded=num_decoded)


def test_a_sound_data_set_has_notes_only(register):
    register()
    report = check()
    assert list(found_in(report)) == ["category_gaps"]  # 3 and 8
    assert len(report.table.files.sizes) == len(report.table.file_names) == 6
    assert report.table.class_names == ["cat", "dog"]
    assert report.table.class_counts.tolist() == [3, 3]
    check_datasets(["tiny"], [], mode="error", num_decoded=-1)


def first(section="annotations", index=0, **fields):
    return lambda content: content[section][index].update(fields)


def every(start=0, **fields):
    """A format is guessed from most of the boxes, not all."""
    return lambda content: [x.update(fields) for x in content["annotations"][start:]]


def box(*values):
    return first(index=2, bbox=list(values))


def same_image_again(content):
    content["images"].append({**content["images"][0], "id": 70})
    content["annotations"].append({**content["annotations"][0], "id": 70, "image_id": 70})


def annotate_again(**fields):
    """Annotation 70: the first object again, its box a pixel wider, or as ``fields`` says."""

    def change(content):
        first = content["annotations"][0]
        x, y, w, h = first["bbox"]
        content["annotations"].append({**first, "id": 70, "bbox": [x, y, w + 1, h], **fields})

    return change


def rare_class(content):
    """51 dogs more, in the same image as one that is there."""
    dog = content["annotations"][1]
    dogs = [{**dog, "id": 70 + i, "bbox": [i, i, 9, 9]} for i in range(51)]
    content["annotations"] = [content["annotations"][0], dog, *dogs]


FAULTS = [
    # (what is done to the file, the kind found, a part of the first case)
    (box(1, 2, float("nan"), 4), "box_not_finite", "annotation 3, box [1, 2, nan, 4]"),
    (box(1, 2, 3, float("inf")), "box_not_finite", "2.jpg"),
    (box(5, 5, -3, 4), "negative_size", "2.jpg, annotation 3"),
    (box(5, 5, 0, 4), "zero_area", "2.jpg, annotation 3"),
    (box(64, 5, 3, 4), "box_outside", "in an image of 64×64"),
    (box(-9, 5, 9, 4), "box_outside", "annotation 3"),
    (box(50, 5, 20, 4), "box_over_border", "annotation 3"),
    (every(bbox=[30, 32, 60, 62]), "box_format", "[x1, y1, x2, y2]"),
    (every(1, bbox=[0.1, 0.2, 0.3, 0.4]), "box_format", "in fractions"),
    (every(1, bbox=[0.75, 0.8, 0.3, 0.4]), "box_format", f"look like {CENTERS} in fractions"),
    (every(bbox=[50, 52, 28, 24]), "box_format", f"look like {CENTERS}: "),
    (first(area=None), "false_area", "annotation 1"),
    (first(id=2), "duplicate_annotation_id", "annotation 2"),
    (first(id=0), "annotation_id_zero", "annotation 0"),
    (first(image_id=99), "unknown_image", "annotation 1"),
    (first(image_id="1"), "unknown_image", "not listed, but 1 is"),
    (first(category_id=4), "unknown_category", "category 4"),
    (first(segmentation=[[]]), "no_polygon", "annotation 1"),
    (first("images", id=2), "duplicate_image_id", "image 2, 2 times"),
    (first("images", width=-64), "image_size", "0.jpg, image 1, -64×64"),
    (first("images", width=65), "wrong_size", "annotated as 65×64, is 64×64"),
    (first("images", file_name="x"), "missing_image", "x, image 1, no such file"),
    (first("images", file_name="images\\0.jpg"), "missing_image", "images/0.jpg:"),
    (first("images", file_name="%30.JPG"), "missing_image", "/0.jpg: correct"),
    (first("images", file_name="\0"), "missing_image", "no such file"),
    (first("images", 1, file_name="0.jpg"), "conflicting_image", "images 1, 2"),
    (same_image_again, "repeated_image", "images 1, 70"),
    (annotate_again(), "repeated_object", "annotation 70, cat, has the box of annotation 1, cat"),
    (annotate_again(category_id=8), "object_of_two_classes", "annotation 70, dog"),
    (rare_class, "rare_class", "cat, 1 of 53 objects"),
    (every(iscrowd=1), "no_objects", "0 objects"),
    (lambda c: c["categories"].append({"id": 9, "name": "x"}), "class_without_objects", "9, x"),
    (first("categories", 1, name="cat"), "same_name", "categories 3, 8, cat"),
    (lambda c: c["annotations"].pop(), "empty_images", "5.jpg, image 6"),
    (lambda c: c.update(images=[], annotations=[]), "no_image", "json"),
]


@pytest.mark.parametrize("change, kind, case", FAULTS)
def test_each_fault_is_named_and_errors_stop(register, caplog, change, kind, case):
    register(change)
    report = check()
    finding = found_in(report)[kind]
    assert finding.count >= 1 and case in finding.cases[0]
    if finding.degree == "error":
        with pytest.raises(ValueError, match="data set 'tiny'") as error:
            check_datasets(["tiny"], [], mode="error", num_decoded=-1)
        assert CHECKS[kind].title in str(error.value) and case in str(error.value)
    elif not report.of_degree("error"):
        check_datasets(["tiny"], [], mode="error", num_decoded=-1)
        assert (case in caplog.text) == (finding.degree == "warning")
    assert len(str(report).splitlines()) <= 8


def test_every_check_but_those_of_files_is_among_these_tests():
    others = {"unreadable_image", "deep_image", "category_gaps", "trained_image"}
    assert {kind for _, kind, _ in FAULTS} | others == set(CHECKS)


def test_images_of_more_than_8_bits(register):
    """16 are read by halves, 32 not at all: a finding each."""
    folder = register()
    for name, dtype in (("3.jpg", np.uint16), ("4.jpg", np.float32)):
        pixels = Image.fromarray(np.zeros((64, 64), dtype))
        pixels.save(folder / name, "PNG" if dtype is np.uint16 else "TIFF")
    found = found_in(check())
    assert found["deep_image"].cases[0].endswith("3.jpg, image 4")
    assert "32 bits" in found["unreadable_image"].cases[0]


def test_a_pipe_is_no_image(register):
    path = register() / "2.jpg"
    path.unlink()
    os.mkfifo(path)  # reading it would wait forever
    assert found_in(check())["missing_image"].count == 1


def test_a_sample_is_decoded_but_every_file_is_looked_for(register):
    folder = register()
    for name in ("0.jpg", "3.jpg"):
        (folder / name).unlink()
    (folder / "5.jpg").write_bytes(b"")
    report = check(num_decoded=1)
    assert len(report.table.files.sizes) <= 1  # the draw; and the empty file can't be
    assert found_in(report)["missing_image"].count == 2
    assert found_in(report)["unreadable_image"].count == 1


def test_rotated_images_are_compared_as_the_mapper_reads_them(register):
    """A camera's JPEG, stored lying and marked (EXIF) to be turned; the json gives it upright."""
    folder = register(lambda c: c["images"][0].update(width=40, height=64))
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 40)).save(folder / "0.jpg", exif=exif)
    assert "wrong_size" not in found_in(check())


# --- degrees ---


def test_few_boxes_without_area_are_a_warning_and_many_an_error(register):
    """COCO train2017 has two."""

    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 100 + i} for i in range(194)]
        content["annotations"][50]["bbox"] = [1, 1, 5, 0]
        content["annotations"][51]["bbox"] = [1, 1, 0, 5]

    register(change)
    check_datasets(["tiny"], [], mode="error", num_decoded=0)
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")
    register(lambda content: content["annotations"][52].update(bbox=[1, 1, 5, 0]))
    with pytest.raises(ValueError, match="boxes without area: 3"):
        check_datasets(["tiny"], [], mode="error", num_decoded=0)


def test_a_set_that_is_only_evaluated_may_be_without_objects(register):
    register(every(iscrowd=1))
    check_datasets([], ["tiny"], mode="error", num_decoded=0)
    with pytest.raises(ValueError, match="no object to learn from"):
        check_datasets(["tiny"], ["tiny"], mode="error", num_decoded=0)


def test_a_set_of_records_may_have_a_json(tiny_coco, register):
    """As Detectron2's evaluator leaves one; without image_root, its file names are whole."""
    register()
    records = DatasetCatalog.get("tiny")
    DatasetCatalog.register("records", lambda: records)
    metadata = MetadataCatalog.get("records")
    metadata.set(thing_classes=["a", "b"], evaluator_type="coco", json_file=str(tiny_coco[0]))
    (report,) = check_datasets(["records"], [], num_decoded=0)
    assert report.table.source == "records" and not report.of_degree("error")


def test_generated_sets_are_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_datasets(["focal_shapes_train"], [], mode="error", num_decoded=0)
    assert not (tmp_path / "datasets").exists()


# --- the training set and the others ---


def test_images_of_the_training_set_are_found_in_another(tiny_coco, register, tmp_path):
    """Of val: the same file, a copy, and a resaved one; the others were changed."""
    folder, copies = register(), tmp_path / "copies"
    copies.mkdir()
    content = json.loads(tiny_coco[0].read_text())
    for i, image in enumerate(content["images"]):
        pixels = np.asarray(Image.open(folder / image["file_name"]))
        other = np.rot90(pixels, 1 + i % 3) if i > 2 else pixels
        Image.fromarray(other).save(copies / image["file_name"], quality=70)
    (copies / "1.jpg").write_bytes((folder / "1.jpg").read_bytes())
    content["images"][0]["file_name"] = f"{folder}/../{folder.name}/0.jpg"
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_coco_json("val", str(tmp_path / "val.json"), str(copies))
    train, val = check_datasets(["tiny"], ["val", "tiny"], mode="error", num_decoded=-1)
    assert found_in(train).keys() == {"category_gaps"}
    found = found_in(val)
    assert found.keys() == {"category_gaps", "trained_image"}
    cases = found["trained_image"].cases
    assert [x.rpartition("image ")[2] for x in cases] == [
        "1, the same file",
        f"2, like {folder}/1.jpg",
        f"3, like {folder}/2.jpg",
    ]
    assert "6 images decoded and compared with 6 of the training" in val.summary()


# --- objects annotated twice ---

_BOX = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 40)] * 2)


@example([(0, i > 0, (0, 0, 1, 1)) for i in range(3)], False)
@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), _BOX), max_size=30), st.booleans())
def test_boxes_annotated_twice_are_those_of_a_plain_search(objects, same_class):
    records = [{"file_name": "", "width": 64, "height": 64, "annotations": []} for _ in range(3)]
    for image, label, x in objects:
        entry = {"bbox": x, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
        records[image]["annotations"].append(entry)
    table = record_table("", records, "abc")
    boxes = Boxes(torch.tensor(BoxMode.convert(table.boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)))
    same = (pairwise_iou(boxes, boxes) > 0.95).numpy() if len(boxes) else np.zeros((0, 0), bool)
    for column, equal in ((table.image_index, True), (table.class_index, same_class)):
        same &= (column[:, None] == column) == equal
    np.fill_diagonal(same, False)
    name = "repeated_object" if same_class else "object_of_two_classes"
    found = set(np.asarray(CHECKS[name].find(table)[0]).tolist())
    # Each object that has a twin is found, or is the twin of one that is.
    assert found <= set(np.flatnonzero(same.any(axis=1)).tolist())
    assert all(
        i in found or found & {*np.flatnonzero(row)} for i, row in enumerate(same) if row.any()
    )


# --- boxes ---

_COORDINATE = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-100, 100)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(*[_COORDINATE] * 4), min_size=1, max_size=5))
def test_a_box_without_fault_has_area_in_its_image(rows):
    boxes = np.array(rows)
    faults = box_faults(boxes, np.tile([64.0, 48.0], (len(boxes), 1)))
    assert (np.sum(list(faults.values()), axis=0) <= 1).all()
    for x, y, w, h in boxes[~np.any(list(faults.values()), axis=0)].tolist():
        assert min(x + w, 64) > max(x, 0) and min(y + h, 48) > max(y, 0)
        assert x >= -1 and y >= -1 and x + w <= 65 and y + h <= 49


# --- real data ---


@pytest.mark.parametrize(
    "json_file, images, zero_area",
    [
        ("cards/train.json", "cards/images", 0),
        ("bccd/train.json", "bccd/images", 1),
        ("bccd/val.json", "bccd/images", 1),
        ("coco_tiny/annotations/instances_train2017.json", "coco_tiny/train2017", 0),
        ("coco_tiny/annotations/instances_val2017.json", "coco_tiny/val2017", 0),
    ],
)
def test_real_data_pass_with_what_is_known_of_them(json_file, images, zero_area):
    if not (REAL_DATA / json_file).is_file():
        pytest.skip(f"the real data set {REAL_DATA / json_file} is not here")
    register_coco_json("real", str(REAL_DATA / json_file), str(REAL_DATA / images))
    check_datasets(["real"], [], mode="error", num_decoded=5)
    found = found_in(check_dataset("real", num_decoded=5))
    assert set(found) <= {"zero_area", "category_gaps", "rare_class", "object_of_two_classes"}
    assert ("rare_class" in found) == ("coco_tiny" in json_file)
    # A chair that is a couch, too
    assert ("object_of_two_classes" in found) == ("instances_train" in json_file)
    assert (found["zero_area"].count if zero_area else 0) == zero_area
