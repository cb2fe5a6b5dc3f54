"""Anchor coverage equals the IoU with every anchor of the grid; suggestions keep what they say."""

import shlex

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.structures import Boxes, pairwise_iou
from helpers import load
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.dataset_check import check_datasets, warn_of_unreached_objects
from focal_retina.dataset_check.anchor_coverage import (
    ENOUGH,
    best_anchor_iou,
    build_anchor_grid,
    input_size,
    measure_coverage,
    resized_objects,
    suggest_anchors,
)
from focal_retina.dataset_check.table import load_table


@pytest.fixture(scope="module")
def grid():
    return build_anchor_grid(load("Base-FocalRetinaNet.yaml"))


@pytest.mark.parametrize("offset", [0.0, 0.5])
@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    boxes=st.lists(
        st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.01, 1)] * 2), min_size=1, max_size=6
    ),
)
def test_best_iou_is_that_over_all_anchors(grid, offset, size, boxes):
    cfg = load("Base-FocalRetinaNet.yaml", "MODEL.ANCHOR_GENERATOR.OFFSET", offset)
    strides = [8, 16, 32, 64, 128]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in strides])
    size = np.array(size, float)
    corners = np.array(boxes)
    corners[:, 2:] = np.minimum(corners[:, :2] + corners[:, 2:], 1)
    corners *= np.tile(size, 2)
    padded = [int(-(-x // 32) * 32) for x in size]
    features = [torch.zeros(1, 1, -(-padded[1] // s), -(-padded[0] // s)) for s in strides]
    iou = pairwise_iou(Boxes(torch.tensor(corners).float()), Boxes.cat(generator(features)))
    sizes = np.tile(size, (len(corners), 1))
    best = best_anchor_iou(corners, sizes, grid._replace(offset=offset))
    np.testing.assert_allclose(best, iou.amax(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("short_edge, max_size", [(0, 9), (100, 1000), (31, 47), (64, 64)])
def test_images_are_resized_as_detectron2_does(tiny, short_edge, max_size):
    table = load_table(tiny)
    table.image_sizes[:] = [(64, 64), (100, 64), (64, 99), (333, 500), (640, 427), (61, 200)]
    table.boxes[:] = [1, 2, 20, 30]
    boxes, sizes, indices = resized_objects(table, short_edge, max_size)
    assert indices.tolist() == list(range(6))
    for (w, h), new, box in zip(table.image_sizes, sizes, boxes, strict=True):
        expected = (h, w)
        if short_edge:
            expected = ResizeShortestEdge.get_output_shape(h, w, short_edge, max_size)
        assert new[::-1].tolist() == list(expected)
        np.testing.assert_allclose(box, np.array([1, 2, 21, 32]) * np.tile(new / (w, h), 2))


def test_faulty_boxes_and_crowds_are_left_out(tiny):
    table = load_table(tiny)
    table.boxes[0, 2], table.boxes[1, 3], table.boxes[2, 0] = np.nan, 0, 99
    table.is_crowd[3] = True
    assert resized_objects(table, 64, 64)[2].tolist() == [4, 5]


def test_counts_by_class_and_size(tiny, grid):
    table = load_table(tiny)
    table.boxes[1] = [4, 4, 3, 3]
    table.boxes[2] = [0, 0, 64, 64]
    coverage = measure_coverage(table, grid, short_edge=0, max_size=0)
    assert coverage.counts.tolist() == [[2, 1, 0], [3, 0, 0]]
    assert coverage.unreached.tolist() == [[0, 0, 0], [1, 0, 0]]  # 3×3 pixels in anchors from 32²
    assert coverage.unreached_share == pytest.approx(1 / 6)
    assert "16.7% of the objects" in str(coverage) and "small 1 of 5" in str(coverage)


def test_positive_band_and_input_size():
    cfg = load("quickstart/shapes.yaml")
    assert build_anchor_grid(cfg).threshold == 0.5
    cfg.MODEL.RETINANET.IOU_LABELS, cfg.MODEL.RETINANET.IOU_THRESHOLDS = [0, 1, 1], [0.3, 0.6]
    assert build_anchor_grid(cfg).threshold == 0.3
    cfg.INPUT.MIN_SIZE_TRAIN = (640, 800, 672)
    assert input_size(cfg, training=True) == (672, 160)
    assert input_size(cfg, training=False) == (128, 160)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (400, 800), "range"
    assert input_size(cfg, training=True) == (600, 160)
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = True
    assert input_size(cfg, training=True) == (1024, 1024)
    cfg.MODEL.RETINANET.IOU_LABELS = [0, -1, -1]
    with pytest.raises(ValueError, match="makes no anchor positive"):
        build_anchor_grid(cfg)


def test_a_suggestion_reaches_what_it_says(grid):
    """Small squares, which anchors from 32 pixels on do not reach."""
    generator = np.random.default_rng(0)
    start = generator.uniform(0, 400, (300, 2))
    boxes = np.hstack([start, start + generator.uniform(12, 16, (300, 1))])
    sizes = np.full((300, 2), 640.0)
    assert (best_anchor_iou(boxes, sizes, grid) < 0.4).mean() > 0.9
    suggestion = suggest_anchors(boxes, sizes, grid._replace(threshold=0.4))
    assert suggestion.unreached_share <= ENOUGH and suggestion.num_anchors < 9
    cfg = load("Base-FocalRetinaNet.yaml")
    cfg.merge_from_list(
        shlex.split(suggestion.as_options())  # as a shell would
    )
    share = (best_anchor_iou(boxes, sizes, build_anchor_grid(cfg)) < 0.4).mean()
    assert share == pytest.approx(suggestion.unreached_share, abs=1e-6)


def test_no_suggestion_where_nothing_is_better(grid):
    boxes = np.array([[10.0, 10, 74, 74], [100, 100, 228, 228]])
    assert suggest_anchors(boxes, np.full((2, 2), 640.0), grid) is None


def test_warning_before_a_training(tiny, caplog):
    cfg = load("quickstart/shapes.yaml")
    reports = check_datasets([tiny, "focal_shapes_train"], [], mode="error", num_decoded=0)
    warn_of_unreached_objects(cfg, reports)
    assert not caplog.text
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[300], [600]]
    warn_of_unreached_objects(cfg, check_datasets([], [tiny], mode="error", num_decoded=0))
    assert not caplog.text
    warn_of_unreached_objects(cfg, reports)
    assert "tiny: 100.0% of the objects reach no anchor" in caplog.text
