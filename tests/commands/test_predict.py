"""focal-retina predict as a user calls it, on a model of toy size."""

import json
import shutil

import cv2
import numpy as np
import pytest
from helpers import make_run
from PIL import Image
from pycocotools.coco import COCO

from focal_retina.deploy import Predictor, media
from focal_retina.engine import UserError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture
def predict(command, run_dir):
    """Call the command with the toy's model; returns (exit status, stderr)."""
    return lambda *words: command("predict", "--model", run_dir, *words)[::2]


def noise(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Two pictures of one name, one in a subfolder and turned by 90 degrees, and a text."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(noise()).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(90, 50, seed=1)).save(folder / "below" / "a.png", exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def clip(tmp_path):
    """A video of 5 frames, 12 a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (96, 64))
    for i in range(5):
        writer.write(noise(64, 96, seed=i))
    writer.release()
    return path


def records(path):
    """Images of a json of results, as (name, frame or None, width, height)."""
    images = json.loads(path.read_text())["images"]
    return [(x["file_name"], x.get("frame"), x["width"], x["height"]) for x in images]


def count_frames(path):
    capture = cv2.VideoCapture(str(path))
    return sum(iter(lambda: capture.read()[0], False))


def test_folder(predict, photos, tmp_path):
    found, picture_folder = tmp_path / "found.json", tmp_path / "found"
    arguments = ("--json", found, "--output", picture_folder, "--batch-size", 2)
    assert predict(*arguments, "--threshold", 0.3, photos)[0] == 0
    names = str(photos / "a.png"), str(photos / "below" / "a.png")
    assert records(found) == [(names[0], None, 80, 60), (names[1], None, 90, 50)]
    coco = COCO(str(found))
    assert [x["name"] for x in coco.cats.values()] == ["class 0", "class 1"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert {x["image_id"] for x in annotations} == {1, 2}
    for x in annotations:
        assert x["score"] >= 0.3 and x["category_id"] in coco.cats
        left, top, width, height = x["bbox"]
        image = coco.imgs[x["image_id"]]
        assert left >= 0 and left + width <= image["width"] + 1e-3
        assert top >= 0 and top + height <= image["height"] + 1e-3
    drawn = np.asarray(Image.open(picture_folder / "a.png"))
    assert drawn.shape == (60, 80, 3) and np.any(drawn != noise())
    assert {x.name for x in picture_folder.iterdir()} == {"a.png", "below"}


def test_what_an_input_is(photos, monkeypatch):
    pattern = str(photos / "**" / "*.png")
    for name in "a.pdf", "._a.png":  # Pillow writes PDF, and cannot read it
        (photos / name).touch()
    assert len(media.find_sources([pattern, str(photos / "a.png"), str(photos)])) == 2
    photos.rename(photos.with_name("2024"))
    monkeypatch.chdir(photos.parent)
    assert [x.name for x in media.find_sources(["2024"])] == ["2024/a.png", "2024/below/a.png"]
    assert [x.webcam for x in media.find_sources(["7"])] == [7]


def test_tiles(predict, tmp_path):
    """In a large picture they find what is too small for the network at the size of the whole."""
    Image.fromarray(noise(300, 250)).save(tmp_path / "a.png")
    counts = []
    for options in [], ["--tile", 100, "--overlap", 0.1, "--batch-size", 4]:
        assert predict("--json", tmp_path / "x.json", *options, tmp_path / "a.png")[0] == 0
        counts.append(len(json.loads((tmp_path / "x.json").read_text())["annotations"]))
    assert counts[1] > counts[0]


def test_video(predict, clip, tmp_path):
    found, output = tmp_path / "found.json", tmp_path / "out"
    assert predict("--output", output, "--json", found, "--batch-size", 2, clip)[0] == 0
    drawn = output / "clip.avi.mp4"
    assert cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    assert count_frames(drawn) == 5
    assert records(found) == [(str(clip), i, 96, 64) for i in range(5)]


def test_webcam(predict, clip, tmp_path, monkeypatch):
    """A camera is OpenCV's capture of a number, which here gives the frames of a file."""
    opened, capture = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda x: opened.append(x) or capture(str(clip)))
    found, output = tmp_path / "x.json", tmp_path / "out"
    assert predict("--json", found, "--output", output, "2")[0] == 0
    assert opened == [2]
    monkeypatch.undo()
    assert records(found) == [("webcam 2", i, 96, 64) for i in range(5)]


def test_unreadable_files_are_passed_over(predict, photos, clip, tmp_path):
    """They cost no other, and batches go over the borders of sources."""
    whole = (photos / "a.png").read_bytes()
    (photos / "b.png").write_bytes(whole[: len(whole) // 2])
    (photos / "c.jpg").write_bytes(b"nonsense")
    (photos / "d.mp4").write_bytes(b"nonsense")
    found = tmp_path / "found.json"
    status, err = predict("--json", found, "--batch-size", 4, photos, tmp_path / "none.jpg", clip)
    assert status == 1
    for name in (photos / "b.png", photos / "c.jpg", photos / "d.mp4"):
        assert f"{name}: passed over: " in err
    assert f"{tmp_path / 'none.jpg'}: passed over: [Errno 2] No such file" in err
    pictures = [(str(photos / x), None) for x in ("a.png", "below/a.png")]
    assert [x[:2] for x in records(found)] == [*pictures, *((str(clip), i) for i in range(5))]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_failing_image_costs_no_other(predict, photos, tmp_path, monkeypatch, batch_size):
    def forward(self, images, read=Predictor.predict):
        if any(x.shape[0] == 33 for x in images):
            raise RuntimeError("too\nthin")
        return read(self, images)

    monkeypatch.setattr(Predictor, "predict", forward)
    Image.fromarray(noise(33)).save(photos / "b.png")
    found = tmp_path / "found.json"
    status, err = predict("--json", found, "--batch-size", batch_size, photos)
    assert status == 1 and f"{photos / 'b.png'}: passed over: too thin" in err
    assert [x[0] for x in records(found)] == [str(photos / x) for x in ("a.png", "below/a.png")]


def test_thin_images(predict, tmp_path):
    """Resized, a side of them would have no pixel."""
    for i, size in enumerate([(1, 3000), (3000, 1), (700, 2), (1, 1)]):
        Image.fromarray(noise(*size)).save(tmp_path / f"{i}.png")
    found = tmp_path / "found.json"
    assert predict("--json", found, "--output", tmp_path / "out", tmp_path)[0] == 0
    assert len(records(found)) == 4


def test_interruption_leaves_what_is_done(predict, clip, tmp_path, monkeypatch):
    """Ctrl-C at the third frame: two are in the json and in the video, which is whole."""
    read = media.Source.frames

    def frames(self):
        for frame in read(self):
            if frame.number == 2:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(media.Source, "frames", frames)
    found = tmp_path / "found.json"
    status, err = predict("--json", found, "--output", tmp_path / "out", clip)
    assert status == 130 and "interrupted" in err
    assert len(records(found)) == count_frames(tmp_path / "out" / "clip.avi.mp4") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "x.json", "empty"], "empty: no image and no video there"),
        (["--json", "x.json", "*.none"], r"*.none: no image and no video there"),
        (["--json", "x.json", "--threshold", "0.01", "a.png"], "is below the model's own, 0.05"),
        (["--output", ".", "a.png"], "a.png, an input, would be overwritten"),
        (["--output", "empty", "a.png", "empty/a.png"], "empty/a.png, an input"),
        (["--json", "x.json", "MODEL.DEVICE", "cpu"], "no INPUT: name files"),
        (["--model", "a.pt2", "--json", "x.json", "a.png"], "runs Python code that stands in it"),
        (["--model", "empty", "--json", "x.json", "a.png"], "there is no file empty/config.yaml"),
        (["a.png", "MODEL.NONE", "1", "--json", "x.json"], "MODEL.NONE"),
        (["a.png"], "nothing to write: name --output, --json or both"),
        (["--json", "x.json", "--threshold", "2", "a.png"], "--threshold: from 0 to 1"),
        (["--json", "x.json", "--batch-size", "0", "a.png"], "--batch-size: at least 1"),
        (["--json", "x.json", "--tile", "0", "a.png"], "tile 0, overlap 0.2: at least 1"),
        (["--json", "x.json", "--overlap", "0.3", "a.png"], "name --tile, too"),
    ],
)
def test_user_errors(assert_user_error, run_dir, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.fromarray(noise()).save("a.png")
    (tmp_path / "a.pt2").touch()
    assert_user_error(message, "predict", "--model", run_dir, *arguments)
    assert not (tmp_path / "x.json").exists()


def test_the_threshold_is_the_models_own(command, assert_user_error, run_dir, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    folder, found = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "found.json"
    fixed = ("predict", "--model", folder, "--json", found, tmp_path / "a.png")

    def scores(*words):
        status, out, err = command(*fixed, *words)
        assert status == 0, err
        return [x["score"] for x in json.loads(found.read_text())["annotations"]], out

    every, _ = scores("--threshold", "0.05")
    default, out = scores()
    assert default == [x for x in every if x >= 0.5]
    assert "score threshold 0.500: the default" in out
    (folder / "threshold.json").write_text('{"threshold": 0.625, "dataset": "birds"}')
    own, out = scores()
    assert own == [x for x in every if x >= 0.625] and len(own) < len(default)
    assert "score threshold 0.625: the model's, of its best F1" in out
    assert scores("--threshold", "0.5")[0] == default
    assert scores("MODEL.RETINANET.SCORE_THRESH_TEST", "0.7")[0] == [x for x in every if x >= 0.7]
    (folder / "threshold.json").write_text("[]")
    assert_user_error("threshold.json is damaged", *fixed)


def test_where_pictures_go(tmp_path):
    """Trees below the common folder, a video under its own name, and none above another."""
    names = ["/data/a/1.jpg", "/data/b/1.jpg", "/data/clip.mov", "/data/clip.mp4", "/data/x.gif"]
    found = media.find_sources([*names, "0"])
    paths = [str(x.relative_to(tmp_path)) for x in media.output_paths(tmp_path, found).values()]
    assert paths[:3] == ["a/1.jpg", "b/1.jpg", "clip.mov.mp4"]
    assert paths[3:] == ["clip.mp4", "x.gif.png", "webcam0.mp4"]
    with pytest.raises(UserError, match=r"x\.gif\.png would be the picture of 2 inputs"):
        media.output_paths(tmp_path, media.find_sources(["x.gif", "x.gif.png"]))
