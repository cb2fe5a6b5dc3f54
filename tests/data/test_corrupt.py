"""Images that cannot be read: named or skipped, and nothing else is."""

import copy
import logging

import cv2
import numpy as np
import pytest
from helpers import default_cfg
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.data import CorruptImageError, build_corrupt_image_guard
from focal_retina.data.images import CorruptImageGuard
from focal_retina.data.mapper import build_test_mapper, build_train_mapper


def jpeg(width=80, height=60, extension=".jpg"):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def make_record(folder, content, name="a.jpg"):
    if content is not None:
        (folder / name).write_bytes(content)
    size = {"width": 80, "height": 60}
    return {"file_name": str(folder / name), "image_id": 42, "annotations": [], **size}


def make_guard(mode="stop", mapper="detectron2"):
    cfg = default_cfg("MODEL.FOCAL_RETINA.CORRUPT_IMAGES", mode, "INPUT.MAPPER", mapper)
    return build_corrupt_image_guard(cfg, build_train_mapper(cfg))


CORRUPT = {
    "missing": (None, "FileNotFoundError"),
    "empty": (b"", "UnidentifiedImageError"),
    "text": (b"<html>404 not found</html>", "UnidentifiedImageError"),
    "truncated": (jpeg()[: len(jpeg()) // 2], "truncated"),
    "truncated png": (jpeg(extension=".png")[:2000], "truncated"),
    "zeros": (bytes(5000), "UnidentifiedImageError"),
    "wrong size": (jpeg(60, 80), "60 × 80 pixels, annotated as 80 × 60"),
}


@pytest.mark.parametrize("mapper", ["detectron2", "opencv"])
@pytest.mark.parametrize("content, what", CORRUPT.values(), ids=CORRUPT)
def test_stops_and_names_file_and_id(content, what, mapper, tmp_path):
    with pytest.raises(CorruptImageError, match=r"a\.jpg \(image id 42\).*CORRUPT_IMAGES") as error:
        make_guard(mapper=mapper)(make_record(tmp_path, content))
    assert what in str(error.value)


def test_skips_counts_and_logs_each_file_once(tmp_path, caplog):
    content, what = CORRUPT["truncated"]
    guard, record = make_guard("skip"), make_record(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        assert [guard(copy.deepcopy(record)) for _ in range(3)] == [None] * 3
        assert guard(make_record(tmp_path, b"", "b.jpg")) is None
    messages = [r.message for r in caplog.records if "corrupt image" in r.message]
    assert len(messages) == 2 and "a.jpg (image id 42)" in messages[0] and what in messages[0]


@pytest.mark.parametrize("skip", [True, False])
def test_another_error_is_not_taken_for_a_corrupt_image(tmp_path, skip):
    def mapper(record):
        record.clear()  # mappers may change it
        raise OSError("no space left for the cache")

    guard = CorruptImageGuard(mapper, skip=skip, image_format="BGR")
    with pytest.raises(OSError, match="no space left"):
        guard(make_record(tmp_path, jpeg()))
    with pytest.raises(OSError, match="no space left"):
        guard({"image_id": 3})


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match="'ignore'; it can be stop or skip"):
        make_guard("ignore")


def test_in_an_evaluation_a_gray_sample_stands_in(tmp_path):
    """Another image would count twice. DATA_CHECK.MODE skip asks for it, too."""
    cfg = default_cfg("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", "skip")
    record = make_record(tmp_path, jpeg()[:900])
    sample = build_test_mapper(cfg)(record)
    assert sample["is_unreadable"] and sample["image_id"] == 42 and sample["image"].shape[0] == 3
    assert "is_unreadable" not in build_test_mapper(cfg)(make_record(tmp_path, jpeg(), "b.jpg"))


@given(
    extension=st.sampled_from([".jpg", ".png", ".bmp"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_damaged_files_are_read_or_skipped_never_an_odd_error(
    tmp_path_factory, extension, cut, flips
):
    content = bytearray(jpeg(extension=extension))
    del content[int(cut * len(content)) :]
    for where, mask in flips:
        if content:
            content[int(where * len(content))] ^= mask
    folder = tmp_path_factory.mktemp("fuzz")
    guard = make_guard("skip")
    record = make_record(folder, bytes(content), f"x{extension}")
    sample = guard(copy.deepcopy(record))
    assert sample is None or sample["image"].shape[0] == 3
    if sample is None:
        with pytest.raises(CorruptImageError):
            make_guard("stop")(record)
