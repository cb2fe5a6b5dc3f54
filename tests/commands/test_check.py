"""focal-retina check, and its page."""

import json
from html.parser import HTMLParser

import pytest

from focal_retina.commands import main
from focal_retina.config_file import get_config_file

QUICKSTART = get_config_file("quickstart/shapes.yaml")


@pytest.fixture
def run(tiny_coco, catalogs, capsys):
    """Call the command on tiny_coco; returns (exit status, stdout, stderr)."""
    json_file, folder = tiny_coco

    def call(*arguments):
        words = ["check", "--config-file", QUICKSTART, "--register", f"tiny={json_file}:{folder}"]
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


class Balance(HTMLParser):
    """Fails on a tag that is closed but not open, and keeps those that load something."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert tag in self.open
        while self.open.pop() != tag:
            pass


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
    parser = Balance()
    parser.feed(page)
    assert parser.loads == []
    assert "annotation 1, box [1, 2, nan, 4]" in page
    assert "<script>" not in page and "&lt;script&gt;.jpg" in page  # names are text, not tags
    assert "prefers-color-scheme: dark" in page


def test_a_wrong_class_count_is_an_error_of_the_report(run, tmp_path):
    status, out, _ = run("--html", tmp_path / "r.html", "MODEL.RETINANET.NUM_CLASSES", "7")
    assert status == 1
    assert "set MODEL.RETINANET.NUM_CLASSES 2" in out
    assert "set MODEL.RETINANET.NUM_CLASSES 2" in (tmp_path / "r.html").read_text()


def test_other_anchors_are_suggested_where_they_reach_more(run):
    _, out, _ = run("MODEL.ANCHOR_GENERATOR.SIZES", "[[300],[600]]")
    assert "100.0% of the objects reach no anchor" in out
    assert "better (0.0%): MODEL.ANCHOR_GENERATOR.SIZES" in out


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
