"""Reading COCO json: what is right is read, and what is not is named."""

import json

import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from helpers import coco
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.data.coco import read_coco_json, register_coco_json

IMAGE = coco()["images"][0]


def annotated(**changes):
    """A file with one annotation, changed."""
    return coco(annotations=[coco()["annotations"][0] | changes])


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is not json"),
        ("[" * 100_000, "is not json"),
        ("[]", "its top level is not an object"),
        ({}, '"images" is missing'),
        (coco(annotations={}), '"annotations" is missing, or no list'),
        (coco(categories=[]), '"categories" is empty'),
        (coco(categories=[{"id": 1, "name": "a"}] * 2), '"categories" .* holds an id twice'),
        (coco(images=[3]), r"images\[0\] is not an object"),
        (coco(images=[{"id": 1, "file_name": "a", "width": 8}]), r'images\[0\] has no "height"'),
        (
            coco(categories=[{"id": "1", "name": "a"}]),
            r'ies\[0\] has "id" .1., which is not an int',
        ),
        (annotated(bbox=[1, 2, 3]), r'ns\[0\] has "bbox" \[1, 2, 3\], which is not four numbers'),
        (annotated(bbox=[1, 2, 3, 10**400]), "which is not four numbers"),
        (annotated(iscrowd=2), '"iscrowd" 2, which is not 0 or 1'),
        (annotated(ignore=1), '"ignore" 1, which is not 0'),
        (annotated(segmentation=[1, 2]), '"segmentation" .* which is not polygons'),
        (coco(images=[IMAGE | {"id": x} for x in (1, "1")]), "integers and strings as ids"),
        (coco(images=[{}] * 9), r'images\[4\] has no "id"; and 4 more$'),
        (annotated(category_id=True), "True, which is not an integer"),
    ],
)
def test_malformed_files_are_named_with_entry_and_field(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=message) as error:
        read_coco_json(path)
    assert path in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_other_encodings_are_read(tmp_path, monkeypatch, encoding):
    """By Detectron2's loader and evaluator, too, which know UTF-8 alone."""
    monkeypatch.setattr("focal_retina.data.coco.get_cache_dir", lambda: str(tmp_path))
    path = tmp_path / "set.json"
    path.write_text(json.dumps(coco()), encoding=encoding)
    read = read_coco_json(str(path))
    assert read == coco(categories=coco()["categories"][::-1])  # in the order of their ids
    for _ in range(2):  # the same again changes nothing
        register_coco_json("encoded", str(path), str(tmp_path))
    assert len(DatasetCatalog.get("encoded")[0]["annotations"]) == 1
    assert COCOEvaluator("encoded")._coco_api.imgs.keys() == {1}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "name", "bbox", "images", "width"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_json_is_read_or_a_value_error(data, tmp_path_factory):
    content = coco()
    for section in data.draw(st.lists(st.sampled_from(sorted(content)), unique=True)):
        entry = content[section][0]
        if data.draw(st.booleans()):
            content[section] = data.draw(_JSON)
        else:
            fields = ["iscrowd", "ignore", "segmentation", *entry]
            entry[data.draw(st.sampled_from(fields))] = data.draw(_JSON)
    path = tmp_path_factory.mktemp("fuzz") / "set.json"
    path.write_text(json.dumps(content))
    try:
        read = read_coco_json(str(path))
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017, either outcome is right
        return
    # What is accepted, Detectron2 loads, unless a category is unknown: it names that one itself.
    register_coco_json(str(path), str(path), str(path.parent))
    known = {category["id"] for category in read["categories"]}
    if all(annotation["category_id"] in known for annotation in read["annotations"]):
        assert len(DatasetCatalog.get(str(path))) == len(read["images"])
