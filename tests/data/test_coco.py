"""Registration of COCO json from the command line, and class counts against a config."""

import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from helpers import coco
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.data.classes import check_num_classes, dataset_classes
from focal_retina.data.coco import parse_registration, register_coco_json, register_from_spec
from focal_retina.data.shapes import CLASS_NAMES

# --- NAME=ANNOTATIONS.json:IMAGE_DIR ---


@pytest.mark.parametrize(
    "json_name, folder", [("a.json", "images"), ("a:b.json", "im"), ("k=v.json", "im:ages:")]
)
def test_paths_may_hold_colons_and_home(tmp_path, write, monkeypatch, json_name, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    json_file = write(coco(), json_name)
    (tmp_path / folder).mkdir()
    parsed = parse_registration(f"x=~/{json_name}:{tmp_path / folder}")
    assert parsed == ("x", json_file, str(tmp_path / folder))
    assert parse_registration(f"x=~/{json_name}") == ("x", json_file, None)


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("cards", ValueError, "expected NAME="),
        ("=a.json:images", ValueError, "expected NAME="),
        ("cards=a.json", FileNotFoundError, "no annotation file a.json"),
        ("cards=:images", FileNotFoundError, "no annotation file :images"),
        ("cards=none.json:.", FileNotFoundError, "no annotation file none.json"),
        ("cards=set.json:nowhere", FileNotFoundError, "no image folder nowhere"),
        ("cards=set.json:set.json", FileNotFoundError, "no image folder set.json"),
    ],
)
def test_wrong_registrations_say_what_is_wrong(tmp_path, write, monkeypatch, spec, error, message):
    write(coco())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        parse_registration(spec)


@settings(deadline=None, max_examples=200)
@given(
    st.text(alphabet="ab=:/. ~\né", max_size=12)
    | st.text(st.characters(exclude_characters="\0"), max_size=20)  # no argument can hold it
)
def test_any_registration_parses_or_raises_value_or_file_error(spec):
    try:
        _, json_file, image_root = parse_registration(spec)
    except (ValueError, FileNotFoundError) as error:
        assert "register" in str(error)  # noqa: PT017, either outcome is right
    else:
        assert os.path.exists(json_file) and (image_root is None or os.path.isdir(image_root))


# --- registration and classes ---


def test_registered_as_detectron2_does_with_classes_at_once(tmp_path, write):
    json_file = write(coco())
    register_coco_json("animals", json_file, str(tmp_path))
    metadata = MetadataCatalog.get("animals")
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1}
    (record,) = DatasetCatalog.get("animals")
    assert record["file_name"] == str(tmp_path / "a.jpg")
    assert record["annotations"][0]["category_id"] == 1
    assert metadata.evaluator_type == "coco"


def test_a_name_stands_for_one_data_set(tmp_path, write):
    register_from_spec(f"animals={write(coco())}:{tmp_path}")
    register_from_spec(f"animals={write(coco())}:{tmp_path}")  # the same again
    with pytest.raises(ValueError, match="'animals' is taken by another data set"):
        register_from_spec(f"animals={write(coco(), 'other.json')}:{tmp_path}")
    with pytest.raises(ValueError, match="'coco_2017_val' is taken"):
        register_from_spec(f"coco_2017_val={write(coco())}:{tmp_path}")


def test_images_are_found_beside_the_json_or_in_images(tmp_path, write):
    json_file = write(coco())
    with pytest.raises(
        FileNotFoundError, match=r"first image, a.jpg, is not beside it .*IMAGE_DIR"
    ):
        register_from_spec(f"animals={json_file}")
    for root in (tmp_path / "images", tmp_path):
        root.mkdir(exist_ok=True)
        (root / "a.jpg").touch()
        for _ in range(2):  # the same again changes nothing
            assert register_from_spec(f"in_{root.name}={json_file}") == [f"in_{root.name}"]
        assert MetadataCatalog.get(f"in_{root.name}").image_root == str(root)


def test_wrong_number_of_classes_gives_the_right_one(tmp_path, write):
    register_coco_json("animals", write(coco()), str(tmp_path))
    check_num_classes(2, ["animals"])
    message = r"animals has 2 classes \(dog, cat\), .* is 80: set MODEL.RETINANET.NUM_CLASSES 2$"
    with pytest.raises(ValueError, match=message):
        check_num_classes(80, ["animals"])


def test_train_and_test_sets_agree_in_categories(tmp_path, write):
    register_coco_json("animals", write(coco()), str(tmp_path))
    renamed = coco(categories=[{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}])
    register_coco_json("swapped", write(renamed, "b.json"), str(tmp_path))
    with pytest.raises(ValueError, match="swapped has .*dog.*animals has .*must agree"):
        check_num_classes(2, ["animals", "swapped"])


def test_classes_of_a_set_that_others_registered(tmp_path, write):
    """register_coco_instances fills in the classes only when the set is loaded."""
    register_coco_instances("animals", {}, write(coco()), str(tmp_path))
    assert dataset_classes("animals") == ["dog", "cat"]


def test_a_set_that_is_no_coco_json_is_left_to_detectron2():
    DatasetCatalog.register("made_in_code", list)
    assert dataset_classes("made_in_code") is None
    check_num_classes(3, ["made_in_code"])


def test_generated_shapes_need_no_file():
    names = ["focal_shapes_train", "focal_shapes_val", "focal_shapes_test"]
    check_num_classes(len(CLASS_NAMES), names)


def test_unknown_name_gets_near_ones():
    with pytest.raises(ValueError, match=r"'coco_2017_vla'.*near: coco_2017_val.*--register"):
        dataset_classes("coco_2017_vla")


def test_missing_builtin_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "/sets")
    message = r"instances_val2017.json.*DETECTRON2_DATASETS.*\(it is /sets\)"
    with pytest.raises(FileNotFoundError, match=message):
        check_num_classes(80, ["coco_2017_val"])
