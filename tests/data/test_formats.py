"""YOLO, Pascal VOC and CVAT: what is written comes back; what cannot is said; nothing is stale."""

import importlib.util
import json
import multiprocessing
from pathlib import Path

import hotcoco
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focal_retina.data import formats, register_from_spec
from focal_retina.data.formats import convert_to_coco

SIZE = 80, 50
NAMES = ["zebra", "a & b", "no"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(formats, "get_cache_dir", lambda: str(path))
    return path


def put(root: Path, files: dict[str, str | None]) -> Path:
    """Write texts; None: an image."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", SIZE).save(path)
        else:
            path.write_text(text, encoding="utf-8")
    return root


def convert(path):
    """By split: (class names, {file name: (size, [(class, box, iscrowd)])})."""
    result = {}
    for split, file in convert_to_coco(Path(path))[0].items():
        content = json.loads(Path(file).read_text())
        names = {x["id"]: x["name"] for x in content["categories"]}
        assert list(names) == [*range(1, len(names) + 1)]
        images = {
            x["id"]: (x["file_name"], (x["width"], x["height"]), []) for x in content["images"]
        }
        for x in content["annotations"]:
            assert x["area"] == x["bbox"][2] * x["bbox"][3]
            images[x["image_id"]][2].append((names[x["category_id"]], x["bbox"], x["iscrowd"]))
        result[split] = [*names.values()], {name: rest for name, *rest in images.values()}
    return result


# --- round trips ---

boxes = st.lists(
    st.tuples(
        st.integers(0, 2), *(st.floats(0, x - 8) for x in SIZE), st.floats(1, 8), st.floats(1, 8)
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    "writer, name, tolerance", [("to_voc", "", 1.0), ("to_cvat", "annotations.xml", 0.02)]
)
@settings(deadline=None, max_examples=15)
@given(images=st.lists(boxes, min_size=1, max_size=3).filter(any))
def test_what_hotcoco_writes_comes_back(tmp_path_factory, writer, name, tolerance, images):
    root = tmp_path_factory.mktemp("set")
    names = [f"images/{'sub/' * (i % 2)}{i}.jpg" for i in range(len(images))]
    size = {"width": SIZE[0], "height": SIZE[1]}
    rows = [(i, *row) for i, objects in enumerate(images) for row in objects]
    content = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c + 1, "bbox": box, "area": 1, "iscrowd": 0}
            for n, (i, c, *box) in enumerate(rows, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
    }
    put(root, dict.fromkeys(names))
    getattr(hotcoco.COCO(content), writer)(str(root / name))
    ((classes, found),) = convert(root).values()
    # VOC has no list of classes.
    assert classes == (NAMES if name else sorted({NAMES[c] for _, c, *_ in rows}))
    assert len(found) == len(images)
    found = sorted(found.items(), key=lambda item: int(Path(item[0]).stem))
    for (_, (size, objects)), expected in zip(found, images, strict=True):
        assert tuple(size) == SIZE
        assert [x for x, *_ in objects] == [NAMES[c] for c, *_ in expected]
        for (_, box, iscrowd), (_, *true) in zip(objects, expected, strict=True):
            assert iscrowd == 0 and box == pytest.approx(true, abs=tolerance)


# --- YOLO ---

ROW = "0 .5 .5 .25 .2\n"
OBJECT = "cat", pytest.approx([30, 20, 20, 10]), 0
A = {"images/a.jpg": None, "labels/a.txt": ROW}
YAML = "data.yaml"
ONE = A | {YAML: "names: [cat]\ntrain: images"}


@pytest.mark.parametrize(
    "files",
    [
        ONE,
        A | {YAML: "names: {0: cat, 2: dog}\ntrain: [images]\nval: null"},
        # As Roboflow writes it, with the `path` of another machine
        A | {YAML: "path: /not/here\nnames: [cat]\ntrain: ../images\nval:\ntest: ../test"},
        A | {YAML: "path: .\nnames: [cat]\ntrain: a.txt", "a.txt": "./images/a.jpg\n"},
        {"x/y/a.PNG": None, "x/y/a.txt": "\ufeff\n" + ROW, YAML: "names: [cat]\ntrain: x"},
        {"x/images/a.b.JPG": None, "x/labels/a.b.txt": ROW, YAML: "names: [cat]\ntrain: x"},
        # Polygons, among them those of turned boxes; keypoints; a class as a float
        ONE | {"labels/a.txt": "0 .5 .4 .625 .6 .375 .5"},
        ONE | {"labels/a.txt": "0.0 .5 .4 .625 .6 .375 .5 .5 .5"},
        ONE | {"labels/a.txt": ROW[:-1] + " .1 .1 2", YAML: ONE[YAML] + "\nkpt_shape: [1, 3]"},
    ],
)
def test_yolo_in_its_variants(tmp_path, files):
    ((classes, images),) = convert(put(tmp_path, files)).values()
    assert classes[0] == "cat" and list(images.values()) == [[SIZE, [OBJECT]]]


def test_splits_and_names_of_yolo(tmp_path):
    """Also: order of the classes; images without label file or objects; turned by their Exif."""
    yaml = "names: [no, cat]\ntrain: images/train\nval: [images/val, images/more]\ntest: gone"
    images = dict.fromkeys(f"images/{x}.jpg" for x in ("train/a", "val/b", "more/c"))
    labels = {"labels/train/a.txt": "", "labels/more/c.txt": "1" + ROW[1:] + ROW}
    put(tmp_path, images | labels | {YAML: yaml})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images/more/c.jpg", exif=exif)
    assert register_from_spec(f"mine={tmp_path / YAML}") == ["mine_train", "mine_val"]
    assert MetadataCatalog.get("mine_val").thing_classes == ["no", "cat"]
    record = DatasetCatalog.get("mine_val")[1]
    assert record["file_name"] == str(tmp_path / "images/more/c.jpg")
    assert (record["width"], record["height"]) == SIZE
    assert [x["category_id"] for x in record["annotations"]] == [1, 0]
    assert [len(x["annotations"]) for x in DatasetCatalog.get("mine_train")] == [0]


def test_linked_folders_are_read_and_hidden_ones_not(tmp_path):
    real = put(tmp_path / "real", {"images/b.jpg": None, "labels/b.txt": ROW})
    files = {"images/a.jpg": None, "labels/a.txt": ROW, "images/.copies/a.jpg": None}
    put(tmp_path / "set", files | {YAML: "names: [no, cat]\ntrain: images"})
    for kind in ("images", "labels"):
        (tmp_path / f"set/{kind}/linked").symlink_to(real / kind)
    (tmp_path / "set/images/loop").symlink_to(tmp_path / "set/images")
    ((_, images),) = convert(tmp_path / "set").values()
    assert [*images] == ["images/a.jpg", "images/linked/b.jpg"]


# --- Pascal VOC and CVAT ---


def voc(*objects: str, name: str = "a.jpg", size: str = "<width>80</width><height>50</height>"):
    inner = f"<filename>{name}</filename><size>{size}</size>{''.join(objects)}"
    return f"<annotation>{inner}</annotation>"


def voc_object(*box: float, name: str = "cat", more: str = "") -> str:
    names = "xmax", "ymin", "xmin", "ymax"
    sides = "".join(f"<{x}>{y}</{x}>" for x, y in zip(names, box, strict=False))
    name = f"<part><name>head</name></part><name>{name}</name>"
    return f"<object>{name}{more}<bndbox>{sides}</bndbox></object>"


@pytest.mark.parametrize(
    "files, expected",
    [
        # 1-based and inclusive: the first ten pixels; with decimals
        ({"a.xml": voc(voc_object(10, 1, 1, 10)), "a.jpg": None}, [([0, 0, 10, 10], 0)]),
        (
            {"s/a.xml": voc(voc_object(4.5, 2.25, 3, 4)), "s/a.jpg": None},
            [([2, 1.25, 2.5, 2.75], 0)],
        ),
        # No size, another name, difficult; one box at 0 says that all count from 0
        (
            {
                "Annotations/a.xml": voc(
                    voc_object(10, 0, 2, 9),
                    voc_object(5, 4, 3, 6, more="<difficult>1</difficult>"),
                    name="C:\\b.jpg",
                    size="",
                ),
                "JPEGImages/a.PNG": None,
            },
            [([2, 0, 8, 9], 0), ([3, 4, 2, 2], 1)],
        ),
    ],
)
def test_voc_in_its_variants(tmp_path, files, expected):
    ((classes, images),) = convert(put(tmp_path, files)).values()
    assert classes == ["cat"] and (tmp_path / next(iter(images))).is_file()
    assert list(images.values()) == [[SIZE, [("cat", *x) for x in expected]]]


def test_splits_of_voc(tmp_path, caplog):
    files = {f"Annotations/{x}.xml": voc(name=f"{x}.jpg") for x in "abc"}
    files["Annotations/d.xml"] = voc(voc_object(3, 1, 1, 3, name="dog"))
    files |= dict.fromkeys(f"JPEGImages/{x}.jpg" for x in "abcde")
    lists = {"train": "a\nb\n", "val": "c\nnone\n", "cat_train": "a 1\n"}
    files |= {f"ImageSets/Main/{x}.txt": text for x, text in lists.items()}
    found = convert(put(tmp_path, files))
    assert {x: sorted(y) for x, (_, y) in found.items()} == {
        "train": ["JPEGImages/a.jpg", "JPEGImages/b.jpg"],
        "val": ["JPEGImages/c.jpg"],
    }
    for part in ("have no xml (none)", "in no list of ImageSets/Main (d)", "are left out (e)"):
        assert part in caplog.messages[-1]
    put(tmp_path, {"ImageSets/Main/val.txt": "", "Annotations/._a.xml": "a Mac's"})
    assert [*convert(tmp_path)] == ["train"]
    assert "1 splits have no images and are left out (val)" in caplog.messages[-1]
    roboflow = {"train/a.xml": voc(voc_object(3, 1, 1, 3)), "valid/a.xml": voc()}
    assert [*convert(put(tmp_path / "other", roboflow))] == ["train", "valid"]


def cvat(*images: str) -> str:
    labels = "<label><name>dog</name></label><label><name>cat</name></label>"
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    return f"<annotations>{meta}{''.join(images)}</annotations>"


def cvat_image(*shapes: str, more: str = "") -> str:
    return f'<image id="0" name="a.jpg" width="80" height="50" {more}>{"".join(shapes)}</image>'


CVAT_BOX = '<box label="cat" xtl="30" ytl="20" xbr="50" ybr="30" {}/>'


def test_cvat(tmp_path, caplog):
    """Boxes, turned boxes, polygons; splits; and what is no box is told."""
    polygon = '<polygon label="cat" points="30.00,20.00;50,25;40,30"/>'
    shapes = CVAT_BOX.format(""), CVAT_BOX.format('rotation="90"'), polygon, '<points label="dog"/>'
    text = cvat(cvat_image(*shapes, more='subset="Train"'), cvat_image(more='subset="part"'))
    found = convert(put(tmp_path, {"annotations.xml": text, "images/Train/a.jpg": None}))
    turned = "cat", pytest.approx([35, 15, 10, 20]), 0
    assert found["train"][1] == {"images/Train/a.jpg": [SIZE, [OBJECT, turned, OBJECT]]}
    assert found[""] == (["dog", "cat"], {"images/a.jpg": [SIZE, []]})
    assert caplog.messages[-1].endswith("and are left out (points in a.jpg)")


# --- errors, and the copy in the cache ---


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "holds no data.yaml, no annotations.xml and no VOC xml"),
        ({YAML: "names: ["}, "data.yaml is no YOLO yaml .* ParserError"),
        ({YAML: "train: images"}, "data.yaml is no YOLO yaml .*KeyError: 'names'"),
        ({YAML: "names: {a: b}"}, "data.yaml is no YOLO yaml .*'a'"),
        (ONE | {YAML: "names: [cat]\nval: x"}, "no image with a label file; val: .*x"),
        ({k: v for k, v in ONE.items() if k != "labels/a.txt"}, "no image with a label file"),
        (ONE | {"labels/a.txt": ROW + "0 .5 .5 .25"}, "a.txt, line 2: 4 numbers, which are"),
        (ONE | {"labels/a.txt": ROW[:-1] + " .9 .1 .1"}, "a.txt, line 1: 8 numbers"),
        (ONE | {"labels/a.txt": "\n1" + ROW[1:]}, 'a.txt, line 2: class 1 is not in "names"'),
        (ONE | {"labels/a.txt": "0 .5 .5 x .2"}, "a.txt, line 1: '0 .5 .5 x .2' are not numbers"),
        (ONE | {"labels/a.txt": "0 .5 .5 nan .2"}, "a.txt, line 1: .* are not numbers"),
        (ONE | {"labels/a.txt": "0 40 25 20 10"}, "line 1: '0 40 25 20 10' are no fractions"),
        ({"a.xml": voc()[:-9]}, "a.xml is not xml: .* line 1, column"),
        ({"a.xml": cvat()}, "a.xml begins with <annotations>, where <annotation> is expected"),
        ({"a.xml": voc(voc_object(1, 1, 1))}, "a.xml, object 1: bndbox: '1 1 1 ' are not numbers"),
        ({"a.xml": voc(voc_object(1, 1, 1, 1, name=" "))}, "a.xml, object 1 has no name"),
        ({"annotations.xml": cvat(cvat_image("<box/>"))}, "image 'a.jpg': box: .* are not numbers"),
        ({"annotations.xml": cvat("<track/>")}, "holds tracks of a video: export it as CVAT"),
        ({"annotations.xml": cvat()}, "has no images$"),
        ({"a.xml": voc()}, "has no objects of any class$"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as error:
        convert(put(tmp_path, files))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


WHOLE = {
    "labels/a.txt": ROW,
    YAML: ONE[YAML],
    "a.xml": voc(voc_object(3, 1, 1, 3)),
    "annotations.xml": cvat(cvat_image(CVAT_BOX.format(""))),
}
WORDS = st.sampled_from([*"0-:[{<>/&é\0\n ", "", "1e999", "nan", "name", "box", "images"])


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(list(WHOLE)), st.lists(st.tuples(st.floats(0, 1), WORDS, st.integers(0, 9))))
def test_any_text_is_read_or_refused(tmp_path_factory, file, edits):
    text = WHOLE[file]
    for place, word, removed in edits:
        i = round(place * len(text))
        text = text[:i] + word + text[i + removed :]
    files = {file: text} if file.endswith("xml") else ONE | {file: text}
    root = put(tmp_path_factory.mktemp("set"), {"images/a.jpg": None} | files)
    try:
        convert(root)
    except ValueError as error:
        assert str(root) in str(error)  # noqa: PT017, either outcome is right


def test_broken_images_are_told(tmp_path, caplog):
    put(tmp_path, ONE | {"images/b.jpg": "not an image", "labels/c.txt": ROW})
    assert [*convert(tmp_path)["train"][1]] == ["images/a.jpg"]
    for part in ("1 images have no label file", "1 images cannot be read and", "c.txt"):
        assert part in caplog.messages[-1]


def test_nothing_is_read_twice_and_nothing_is_stale(tmp_path, monkeypatch):
    put(tmp_path, ONE | {"images/b.jpg": None})
    first = convert_to_coco(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "_to_coco", None)
        assert convert_to_coco(tmp_path) == first
    for change in (
        {"labels/a.txt": ROW.replace("2", "3")},
        {"labels/b.txt": ROW},
        {"images/c.jpg": None},
        {YAML: ONE[YAML].replace("cat", "dog")},
    ):
        before = convert(tmp_path)
        put(tmp_path, change)
        assert convert(tmp_path) != before


def _register(root: Path) -> int:
    register_from_spec(f"mine={root}")
    return len(DatasetCatalog.get("mine_train"))


def test_processes_share_one_copy(tmp_path, cache):
    put(tmp_path, ONE | {f"images/{i}.jpg": None for i in range(29)})
    context = multiprocessing.get_context("fork")
    with context.Pool(4, context.Barrier(4).wait) as pool:  # they begin at once
        assert pool.map(_register, [tmp_path] * 4, chunksize=1) == [30] * 4
    assert len(list(cache.rglob("index.json"))) == 1


def test_real_photographs():
    """Aerial ones of trees, 951 boxes."""
    spec = importlib.util.find_spec("deepforest")
    if spec is None:
        pytest.skip("needs the photographs of `pip install --no-deps deepforest==2.1.0`")
    register_from_spec(f"trees={Path(spec.origin).parent / 'data'}")
    assert MetadataCatalog.get("trees").thing_classes == ["Alive", "Dead", "Tree"]
    records = DatasetCatalog.get("trees")
    assert sorted(len(x["annotations"]) for x in records) == [37, 61, 279, 574]
    for record in records:
        assert Image.open(record["file_name"]).size == (record["width"], record["height"])
