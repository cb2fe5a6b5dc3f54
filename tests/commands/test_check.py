"""focal-retina check, and its page."""

import json

import pytest
from helpers import QUICKSTART

from focal_retina.commands import main


@pytest.fixture
def run(register_tiny, capsys):
    """Call the command on tiny_coco; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        words = ["check", "--config-file", str(QUICKSTART), *register_tiny]
        words += ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()"]
        words += ["MODEL.RETINANET.NUM_CLASSES", "2", *map(str, arguments)]
        return main(words), *capsys.readouterr()

    return call


def spoil(path):
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    content["categories"][0]["name"] = "<b>cat</b>"
    content["images"][1]["file_name"] = "<script>.jpg"
    path.write_text(json.dumps(content))


def test_sound_data(run, tmp_path):
    status, out, _ = run("--html", tmp_path / "report.html")
    assert status == 0
    assert "tiny: 6 images, 6 objects of 2 classes" in out
    page = (tmp_path / "report.html").read_text()
    assert "Nothing to object to" in page


def test_errors_give_status_1_and_one_self_contained_page(run, tiny_coco, tmp_path):
    spoil(tiny_coco[0])
    status, out, _ = run("--html", tmp_path / "report.html", "--all-images")
    assert status == 1
    assert "boxes with NaN or infinite numbers: 1" in out and "5 images decoded" in out
    page = (tmp_path / "report.html").read_text()
    assert "src=" not in page and "href=" not in page
    assert "annotation 1, box [1, 2, nan, 4]" in page
    assert "<script>" not in page and "&lt;script&gt;.jpg" in page  # names are text, not tags
    assert "light dark" in page


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("NO.KEY", "1"), "NO.KEY"),
        (("DATASETS.TRAIN", "('nowhere',)"), "no data set 'nowhere'"),
        (("--html", "none/report.html"), "none/report.html"),
    ],
)
def test_user_errors_are_one_line_and_status_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments)
    assert status == 2
    (line,) = [x for x in err.splitlines() if x.startswith("focal-retina check: ")]
    assert message in line
