"""The generated scenes: exact boxes, promised ranges, the same image for the same arguments."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.data.shapes_scene import CLASS_NAMES, ShapesConfig, lay_out, render_scene

CONFIG = ShapesConfig()
UPRIGHT = replace(
    CONFIG, max_turn=0.0, max_stretch=1.0, max_truncation=0.0, max_objects=1, max_distractors=0
)
FRAME = (160, 128)


@pytest.fixture(scope="module")
def layouts():
    return [lay_out(np.random.default_rng(seed), CONFIG, FRAME) for seed in range(400)]


def drawn(shape):
    alpha = np.zeros(FRAME[::-1])
    alpha[shape.window] = shape.alpha
    return alpha


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_box_is_the_extent_of_the_drawn_shape(seed):
    for shape in lay_out(np.random.default_rng(seed), CONFIG, FRAME):
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
            assert ((1 - above) * alpha).sum() >= CONFIG.min_visible * shape.area - 0.01
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
    assert counts.max() == CONFIG.max_objects
    assert 0 < np.mean(counts == 0) < 3 * CONFIG.empty_fraction
    labels = np.bincount([s.label for shapes in objects for s in shapes])
    assert len(labels) == len(CLASS_NAMES) and labels.min() > 0.7 * labels.mean()
    sizes = np.array([np.sqrt(s.box[2] * s.box[3]) for shapes in objects for s in shapes])
    assert sizes.max() <= CONFIG.max_size + 0.5
    # log-uniform: half of them below the geometric mean, less what the border cuts off
    assert np.median(sizes) == pytest.approx(np.sqrt(CONFIG.min_size * CONFIG.max_size), rel=0.1)


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, image_sizes=((320, 256),), max_distractors=12)]
)
def test_image_is_a_pure_function_of_parameters_split_and_index(config):
    image, objects = render_scene(config, "train", 7)
    render_scene(config, "train", 8)
    again, same = render_scene(config, "train", 7)
    np.testing.assert_array_equal(image, again)
    assert image.dtype == np.uint8 and image.shape[1::-1] in config.image_sizes
    assert [(o.label, o.box, o.area) for o in objects] == [(o.label, o.box, o.area) for o in same]
    others = [("val", 7, config), ("train", 8, config), ("train", 7, replace(config, seed=1))]
    for split, index, other_config in others:
        other, _ = render_scene(other_config, split, index)
        assert other.shape != image.shape or (other != image).any()
