"""The generated data set: exact boxes, promised ranges, the same image for the same arguments; on
disk COCO's format, complete or absent, whoever asks for it."""

import itertools
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers import load, make_instances, wait_for
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from focal_retina.data import shapes as generator
from focal_retina.data.coco import read_coco_json
from focal_retina.data.shapes import (
    CLASS_NAMES,
    DISTRACTOR,
    ShapesConfig,
    generate_split,
    lay_out,
    register_shapes,
    render_scene,
    split_directory,
)
from focal_retina.evaluation import build_evaluator

SCENES = ShapesConfig()
CONFIG = ShapesConfig(num_train=6, num_val=4, num_test=2)


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A small data set below tmp_path, registered as "tiny_shapes_…"."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_shapes({"tiny_shapes": CONFIG})
    return tmp_path


def check_contents(directory, split, config=CONFIG):
    """What stands on disk is what render_scene makes in this process."""
    content = read_coco_json(str(directory / "annotations.json"))
    number = getattr(config, f"num_{split}")
    assert len(content["images"]) == len(list((directory / "images").iterdir())) == number
    for entry in content["images"][:6]:
        pixels, objects = render_scene(config, split, entry["id"])
        stored = np.asarray(Image.open(directory / "images" / entry["file_name"]))
        assert stored.shape == (entry["height"], entry["width"], 3) == pixels.shape
        assert np.abs(stored.astype(int) - pixels).mean() < 6  # JPEG's loss
        annotations = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        assert [
            (tuple(a["bbox"]), a["area"], a["category_id"] - 1, a["iscrowd"]) for a in annotations
        ] == [(o.box, o.area, o.label, 0) for o in objects]


def test_registration_writes_nothing_and_first_use_writes_one_split(registered):
    assert list(registered.iterdir()) == []
    records = DatasetCatalog.get("tiny_shapes_val")
    assert len(records) == 4
    assert all(os.path.isfile(record["file_name"]) for record in records)
    directory = split_directory(CONFIG, "val", registered)
    metadata = MetadataCatalog.get("tiny_shapes_val")
    assert metadata.generated and metadata.json_file == str(directory / "annotations.json")
    assert [p.name for p in directory.parent.iterdir() if p.is_dir()] == ["val"]
    check_contents(directory, "val")


def test_an_evaluator_may_be_the_first_use(registered):
    build_evaluator("tiny_shapes_test", str(registered / "out"))
    assert split_directory(CONFIG, "test", registered).is_dir()


def test_other_parameters_or_generator_never_use_old_data(tmp_path, monkeypatch):
    directory = generate_split(CONFIG, "test", tmp_path)
    other = generate_split(replace(CONFIG, seed=1), "test", tmp_path)
    monkeypatch.setattr(generator, "GENERATOR_VERSION", generator.GENERATOR_VERSION + 1)
    newer = generate_split(CONFIG, "test", tmp_path)
    assert len({directory, other, newer}) == 3


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_concurrent_generation(tmp_path, ending):
    """One process is stopped amid its images; then two at once write one data set."""
    config = replace(CONFIG, num_train=300)
    target = split_directory(config, "train", tmp_path)
    context = multiprocessing.get_context("spawn")
    arguments = {"target": generate_split, "args": (config, "train", tmp_path)}
    killed, *others = (context.Process(**arguments) for _ in range(3))
    killed.start()
    wait_for(lambda: list(tmp_path.rglob("*.jpg")))
    os.kill(killed.pid, ending)
    killed.join(60)
    assert list(tmp_path.rglob("*.jpg")) and not target.exists()

    for process in others:
        process.start()
    for process in others:
        process.join(120)
    assert [process.exitcode for process in others] == [0, 0]
    check_contents(target, "train", config)
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["train"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.*DETECTRON2_DATASETS"):
        generate_split(CONFIG, "val", tmp_path / "file")


# --- scenes ---

UPRIGHT = replace(
    SCENES, max_turn=0.0, max_stretch=1.0, max_truncation=0.0, max_objects=1, max_distractors=0
)
FRAME = (160, 128)


@pytest.fixture(scope="module")
def layouts():
    return [lay_out(np.random.default_rng(seed), SCENES, FRAME) for seed in range(400)]


def drawn(shape):
    alpha = np.zeros(FRAME[::-1])
    alpha[shape.window] = shape.alpha
    return alpha


@given(seed=st.integers(0, 2**32 - 1))
def test_box_is_the_extent_of_the_drawn_shape(seed):
    for shape in lay_out(np.random.default_rng(seed), SCENES, FRAME):
        rows, columns = (drawn(shape).any(axis=axis).nonzero()[0] for axis in (1, 0))
        inner = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        box = np.array((*shape.box[:2], *np.add(shape.box[:2], shape.box[2:])))
        np.testing.assert_allclose(box, inner, atol=1 - 1e-6)
        assert (box[:2] >= inner[:2]).all() and (box[2:] <= inner[2:]).all()
        assert (box * 4 == np.round(box * 4)).all()
        assert shape.area == pytest.approx(drawn(shape).sum())


def test_shapes_have_the_area_of_their_formula():
    """Area over box area, of upright shapes; a triangle is half of its box."""
    star = 5 * 0.42 * np.sin(np.pi / 5)
    star /= (2 * np.sin(0.4 * np.pi)) * (1 + np.cos(0.2 * np.pi))
    expected = {"ring": np.pi / 4 * (1 - 0.55**2), "triangle": 0.5, "square": 1, "star": star}
    config, seen = replace(UPRIGHT, min_size=60.0, empty_fraction=0.0), set()
    for seed in range(20):
        (shape,) = lay_out(np.random.default_rng(seed), config, FRAME)
        seen.add(CLASS_NAMES[shape.label])
        assert np.sqrt(shape.box[2] * shape.box[3]) == pytest.approx(60, abs=0.5)
        share = shape.area / (shape.box[2] * shape.box[3])
        assert share == pytest.approx(expected[CLASS_NAMES[shape.label]], rel=0.03)
    assert seen == set(CLASS_NAMES)


def test_every_shape_stays_visible(layouts):
    for shapes in layouts:
        above = np.zeros(FRAME[::-1])
        for shape in reversed(shapes):
            alpha = drawn(shape)
            assert ((1 - above) * alpha).sum() >= SCENES.min_visible * shape.area - 0.01
            above = 1 - (1 - above) * (1 - alpha)
    overlaps = [(sum(drawn(s) for s in shapes) > 1.5).any() for shapes in layouts if shapes]
    assert np.mean(overlaps) > 0.3


def test_the_border_cuts_no_more_than_it_may():
    """Squares of known size: a box's side shows what is left of it."""
    config = replace(UPRIGHT, max_truncation=0.15, min_size=40.0, max_size=40.0)
    shapes = [s for i in range(300) for s in lay_out(np.random.default_rng(i), config, FRAME)]
    sides = [s.box[2:] for s in shapes if s.label == CLASS_NAMES.index("square")]
    assert 40 * 0.85 - 0.5 <= np.min(sides) < 40 * 0.95
    assert np.max(sides) <= 40.5


def test_few_objects_of_every_class_and_size_and_some_empty_images(layouts):
    objects = [[s for s in shapes if s.label >= 0] for shapes in layouts]
    counts = np.array([len(shapes) for shapes in objects])
    assert counts.max() == SCENES.max_objects
    assert 0 < np.mean(counts == 0) < 3 * SCENES.empty_fraction
    labels = np.bincount([s.label for shapes in objects for s in shapes])
    assert len(labels) == len(CLASS_NAMES) and labels.min() > 0.7 * labels.mean()
    sizes = np.array([np.sqrt(s.box[2] * s.box[3]) for shapes in objects for s in shapes])
    assert sizes.max() <= SCENES.max_size + 0.5
    # log-uniform: half of them below the geometric mean, less what the border cuts off
    assert np.median(sizes) == pytest.approx(np.sqrt(SCENES.min_size * SCENES.max_size), rel=0.1)


def test_image_is_a_pure_function_of_parameters_split_and_index():
    image, objects = render_scene(SCENES, "train", 7)
    render_scene(SCENES, "train", 8)
    again, same = render_scene(SCENES, "train", 7)
    np.testing.assert_array_equal(image, again)
    assert image.dtype == np.uint8 and image.shape[1::-1] in SCENES.image_sizes
    assert [(o.label, o.box, o.area) for o in objects] == [(o.label, o.box, o.area) for o in same]
    others = [("val", 7, SCENES), ("train", 8, SCENES), ("train", 7, replace(SCENES, seed=1))]
    for split, index, other_config in others:
        other, _ = render_scene(other_config, split, index)
        assert other.shape != image.shape or (other != image).any()


def test_positive_anchors_of_the_sparse_set_are_as_rare_as_on_coco():
    """At least 1,000 negatives to a positive: the paper's regime."""
    off = {"MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.PRETRAINED": False, "MODEL.DEVICE": "cpu"}
    model = build_model(load("quickstart/sparse_shapes.yaml", *itertools.chain(*off.items())))
    anchors = model.anchors([torch.zeros(1, 1, 32 // k, 40 // k) for k in (1, 2)])
    config = generator._DATA_SETS["sparse_shapes"]
    scenes = [lay_out(np.random.default_rng(i), config, (320, 256)) for i in range(50)]
    boxes = [[s.box for s in scene if s.label != DISTRACTOR] for scene in scenes]
    corners = [[(x, y, x + w, y + h) for x, y, w, h in image] for image in boxes]
    objects = [make_instances(image, [0] * len(image)) for image in corners]
    labels, _ = model.anchor_labeler(anchors, objects)
    assert labels.shape == (50, 14400)
    assert (labels == model.num_classes).sum() >= 1000 * (labels == 0).sum() > 0
