"""Splitting a data set: the laws of the split, and what is written."""

import json
from itertools import chain

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from focal_retina.data.shapes import ShapesConfig, render_scene
from focal_retina.dataset_check.image_files import NEAR, differing_bits, inspect_images
from focal_retina.dataset_check.image_files import near_duplicate_groups as groups_of
from focal_retina.dataset_check.split import split_dataset, split_images

SHARES = (0.7, 0.2, 0.1)
_SETS = st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=4, max_size=60)


def split(classes, groups=None, shares=SHARES, seed=0):
    groups = np.arange(len(classes)) if groups is None else groups
    return [x.tolist() for x in split_images(classes, groups, np.array(shares), seed)]


@settings(deadline=None, max_examples=150)
@given(_SETS, st.integers(0, 3), st.data())
def test_it_is_a_pure_partition_that_keeps_groups_and_trains_on_every_class(classes, seed, data):
    size = len(classes)
    labels = st.lists(st.integers(0, size), min_size=size, max_size=size)
    groups = np.array(data.draw(labels))
    try:
        sides = split(classes, groups, seed=seed)
    except ValueError:  # a side would be empty
        assume(False)
    assert sorted(chain(*sides)) == list(range(size)) and all(sides)
    assert sides == split([x[::-1] for x in classes], groups * 7 - 3, seed=seed)
    assert sum(len({*groups[x]}) for x in sides) == len({*groups})
    assert {k for i in sides[0] for k in classes[i]} == {k for x in classes for k in x}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 4), min_size=12, max_size=200), st.sampled_from([SHARES, (0.8, 0.2)])
)
def test_classes_are_spread_as_evenly_as_whole_images_allow(labels, shares):
    labels += [0] * 10  # so that no side is empty
    sides = split([[x] if x else [] for x in labels], shares=shares)
    for label in {*labels}:
        total = labels.count(label)
        counts = [sum(labels[i] == label for i in side) for side in sides]
        assert np.abs(counts - total * np.array(shares)).max() <= len(shares)
        assert np.count_nonzero(counts[:2]) == min(total, 2), "training and validation have it"


def test_seeds_differ_and_few_images_or_odd_shares_are_refused(tmp_path):
    assert split([[0]] * 40) != split([[0]] * 40, seed=1)
    for groups in ([0], [3] * 9):
        message = f"{len(groups)} images, 1 without near-duplicates, are too few"
        with pytest.raises(ValueError, match=message):
            split([[0]] * len(groups), np.array(groups), (0.8, 0.2))
    for shares in ({"train": 1.1, "val": -0.1}, {"train": 0.8, "val": 0.1}):
        with pytest.raises(ValueError, match="each must be positive, and 1 the sum"):
            split_dataset("unread", tmp_path, shares)


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    """Copies: in half the size, brighter, recompressed, without their border."""
    names = []
    for i in range(20):
        image, _ = render_scene(ShapesConfig(), "train", i)
        half = cv2.resize(image, None, fx=0.5, fy=0.5)
        bright = cv2.convertScaleAbs(image, alpha=1.2)
        for kind, pixels in enumerate((image, half, bright, image[1:-1, 1:-1])):
            names.append(str(tmp_path / f"{i}_{kind}.jpg"))
            cv2.imwrite(names[-1], pixels, [cv2.IMWRITE_JPEG_QUALITY, (95, 70, 95, 50)[kind]])
    hashes = np.array(list(inspect_images(names, -1).hashes.values()))
    assert groups_of(hashes).tolist() == np.repeat(np.arange(20), 4).tolist()
    assert groups_of(hashes[::-1]).tolist() == np.repeat(np.arange(20), 4).tolist()
    assert np.sort(differing_bits(hashes, hashes), axis=1)[:, 4].min() > 1.5 * NEAR


def test_groups_are_those_of_a_plain_search():
    """More images than are compared at once; chains of neighbours are one group."""
    rng = np.random.default_rng(0)
    hashes = np.sign(rng.normal(size=(600, 256))).astype(np.float32)
    for new, old, bits in ((599, 0, NEAR), (300, 599, NEAR), (10, 11, NEAR + 1), (400, 401, 0)):
        hashes[new] = hashes[old]
        hashes[new, rng.choice(256, bits, replace=False)] *= -1
    groups = groups_of(hashes)
    assert groups[0] == groups[599] == groups[300] and groups[400] == groups[401]
    assert len({*groups}) == 600 - 3


@pytest.fixture
def photos(tiny_coco):
    """tiny_coco with what only the file itself holds; 4.jpg is a copy of 1.jpg, 5.jpg is empty."""
    path, folder = tiny_coco
    content = json.loads(path.read_text())
    content |= {"info": {"year": 1}, "licenses": [{"id": 4}], "more": "é"}
    content["images"][2] |= {"license": 4, "width": 64}
    polygon = {"segmentation": [[1.5, 2, 3, 4, 5, 6.25]], "keypoints": [1, 2, 2]}
    content["annotations"][0] |= polygon
    content["annotations"][1] |= {"iscrowd": 1}
    del content["annotations"][5]
    path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "4.jpg").write_bytes((folder / "1.jpg").read_bytes())
    return path, folder


def test_the_files_hold_all_that_the_set_has_and_can_be_registered(photos, command, tmp_path):
    path, folder = photos
    output = tmp_path / "splits"
    words = ["split", "--register", f"all={path}:{folder}", "--output", output]
    status, out, _ = command(*words, "--val", "0.3", "--test", "0.2")
    assert status == 0
    whole, parts = json.loads(path.read_text()), {}
    for side in ("train", "val", "test"):
        parts[side] = json.loads((output / f"{side}.json").read_text())
        assert f"--register all_{side}={output / side}.json:{folder}" in out
    for section, entries in whole.items():
        found = [part[section] for part in parts.values()]
        if section in ("images", "annotations"):
            assert sorted(chain(*found), key=lambda x: x["id"]) == entries
        else:
            assert found == [entries] * 3
    ids = [{x["id"] for x in part["images"]} for part in parts.values()]
    for part, own in zip(parts.values(), ids, strict=True):
        assert {x["image_id"] for x in part["annotations"]} <= own
    assert any({2, 5} <= x for x in ids)  # the copies
    rows = {x.split("  ")[0]: x.split()[-6:] for x in out.splitlines()}
    assert sum(map(int, rows["all"][::2])) == 6 and sum(map(int, rows["all"][1::2])) == 4
    status, _, err = command(*words)
    assert status == 2 and "train.json is there already" in err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["annotations"][0].update(image_id=9), "its image_id 9 is not listed"),
        (lambda c: c["images"].append(c["images"][0]), "image 1, 2 times"),
        (lambda c: c["images"][0].update(file_name="none.jpg"), "none.jpg, image 1, no such file"),
    ],
)
def test_user_errors(tiny_coco, assert_user_error, tmp_path, change, message):
    path, folder = tiny_coco
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    output = tmp_path / "splits"
    words = ["split", "--register", f"all={path}:{folder}", "--output", output]
    assert_user_error(message, *words)
    assert not output.exists()
