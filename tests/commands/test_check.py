"""focal-retina check, and its page."""

import json

import cv2
import numpy as np
import pytest
from helpers import QUICKSTART


@pytest.fixture
def words(register_tiny):
    words = ["check", "--config-file", QUICKSTART, *register_tiny, "DATASETS.TRAIN", "('tiny',)"]
    return [*words, "DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "2"]


def spoil(path):
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    content["categories"][0]["name"] = "<b>cat</b>"
    content["images"][1]["file_name"] = "<script>.jpg"
    path.write_text(json.dumps(content))


def test_sound_data(command, words, tmp_path):
    status, out, _ = command(*words, "--html", tmp_path / "new" / "report.html")
    assert status == 0
    assert "tiny: 6 images, 6 objects of 2 classes" in out
    page = (tmp_path / "new" / "report.html").read_text()
    assert "Nothing to object to" in page


def test_errors_give_status_1_and_one_self_contained_page(command, words, tiny_coco, tmp_path):
    spoil(tiny_coco[0])
    status, out, _ = command(*words, "--html", tmp_path / "report.html", "--all-images")
    assert status == 1
    assert "boxes with NaN or infinite numbers: 1" in out and "5 images decoded" in out
    page = (tmp_path / "report.html").read_text()
    assert "src=" not in page and "href=" not in page
    assert "annotation 1, box [1, 2, nan, 4]" in page
    assert "<script>" not in page and "&lt;script&gt;.jpg" in page  # names are text, not tags
    assert "light dark" in page


def test_pictures_of_sound_data_alone(command, words, tiny_coco, tmp_path):
    sheet = tmp_path / "sheet.png"
    model = ["MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.NORM", "BN"]
    status, _, _ = command(*words, *model, "--pictures", sheet)
    assert status == 0 and np.ptp(cv2.imread(str(sheet)), axis=(0, 1)).min() > 200
    sheet.unlink()
    spoil(tiny_coco[0])
    status, out, _ = command(*words, "--pictures", sheet)
    assert status == 1 and f"{sheet} is not drawn" in out and not sheet.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("DATASETS.TRAIN", "('nowhere',)"), "no data set 'nowhere'"),
        (("--html", "."), "Is a directory"),
    ],
)
def test_user_errors(assert_user_error, words, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_user_error(message, *words, *arguments)
