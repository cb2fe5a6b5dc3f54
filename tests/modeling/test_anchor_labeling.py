"""AnchorLabeler: parity with Detectron2's matcher, the laws that Detectron2 breaks, and what is
refused: ground truth that is invalid, options that make no sense."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from helpers import LargestTensor, make_instances
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.inputs import make_anchors
from focal_retina.modeling import anchor_labeling, anchor_matching
from focal_retina.modeling.anchor_labeling import AnchorLabeler, check_ground_truth

K = 5
EMPTY_BOXES = [[3, 3, 3, 9], [3, 3, 9, 3], [3, 3, 3, 3], [9, 3, 3, 9], [9, 9, 3, 3]]
BANDS = [
    ((0.4, 0.5), (0, -1, 1)),
    ((0.5,), (0, 1)),
    ((0.1, 0.3, 0.5), (-1, 0, -1, 1)),
    ((0.25, 0.25, 0.75), (0, -1, 1, 0)),
]

# Small whole coordinates make equal IoUs and equal boxes frequent; thirds make rounding matter.
whole_boxes = st.builds(
    lambda x, y, w, h, unit: [x * unit, y * unit, (x + w) * unit, (y + h) * unit],
    st.integers(0, 8),
    st.integers(0, 8),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1.0, 1 / 3]),
)
anchor_lists = st.lists(whole_boxes | st.sampled_from(EMPTY_BOXES), min_size=1, max_size=25)
object_lists = st.lists(whole_boxes, min_size=0, max_size=12)
blocks = st.sampled_from([(1, 1), (4, 3), (4000, 8)])
few_examples = settings(deadline=None, max_examples=60)


@pytest.fixture(params=["Blocks", "AllPairs"], autouse=True)
def pairs(request, monkeypatch):
    """On a CPU too, both ways hold the same laws."""
    monkeypatch.setattr(anchor_labeling, "Blocks", getattr(anchor_labeling, request.param))


def make_gt(boxes, classes=None, **fields) -> Instances:
    classes = torch.arange(len(boxes)) % K if classes is None else classes
    return make_instances(boxes, classes, **fields)


def feature_grid_anchors(height: int, width: int) -> list[Boxes]:
    """The anchors of Detectron2's RetinaNet."""
    return make_anchors((height, width), torch.device("cpu"))


def make_levels(anchors) -> list[Boxes]:
    """Two levels, and an anchor that overlaps all objects: no object is left at IoU 0, where
    Detectron2 would make every anchor positive."""
    anchors = torch.tensor([*anchors, [-1, -1, 30, 30]], dtype=torch.float32)
    return [Boxes(anchors[: len(anchors) // 2]), Boxes(anchors[len(anchors) // 2 :])]


def random_gt(count: int, seed: int, extent: float = 64.0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator) * extent
    classes = torch.randint(K, (count,), generator=generator)
    return make_gt(torch.cat([corner, corner + size / 2 + 0.1], dim=1), classes)


def label_with_detectron2(anchors, gt, thresholds=(0.4, 0.5), labels=(0, -1, 1), promote=True):
    """Detectron2's labels (R,) and matched indices (R,)."""
    matcher = Matcher(list(thresholds), list(labels), allow_low_quality_matches=promote)
    model = SimpleNamespace(anchor_matcher=matcher, num_classes=K)
    gt_labels, _ = RetinaNet.label_anchors(model, anchors, [gt])
    matched_idxs, _ = matcher(pairwise_iou(gt.gt_boxes, Boxes.cat(anchors)))
    return gt_labels[0], matched_idxs


def label(anchors, gt, **options):
    """Our labels (R,) and matched indices (R,)."""
    labels, matched_idxs = AnchorLabeler(num_classes=K, **options)(anchors, [gt])
    return labels[0], matched_idxs[0]


def is_positive(labels):
    return (labels >= 0) & (labels < K)


def assert_same(actual, expected):
    """Equal labels everywhere, and equal objects where they are defined: at positives."""
    torch.testing.assert_close(actual[0], expected[0])
    positive = is_positive(expected[0])
    torch.testing.assert_close(actual[1][positive], expected[1][positive])


@few_examples
@given(anchor_lists, object_lists, st.sampled_from(BANDS), st.booleans(), blocks)
def test_equals_detectron2(anchors, objects, bands, promote, block):
    levels, gt = make_levels(anchors), make_gt(objects)
    options = {"iou_thresholds": bands[0], "iou_labels": bands[1]}
    with mock.patch.object(anchor_matching, "CPU_BLOCK", block):
        actual = label(levels, gt, promotion="any" if promote else "none", **options)
    assert_same(actual, label_with_detectron2(levels, gt, *bands, promote))


@pytest.mark.parametrize("count", [1, 8, 150])
def test_equals_detectron2_on_a_feature_pyramid(count):
    anchors, gt = feature_grid_anchors(320, 480), random_gt(count, seed=count, extent=350.0)
    expected = label_with_detectron2(anchors, gt)
    assert is_positive(expected[0]).sum() >= count
    assert_same(label(anchors, gt), expected)


@few_examples
@given(anchor_lists, object_lists.filter(len), st.sampled_from([0.1, 0.4, 0.7]), blocks)
def test_min_iou_promotes_ties_of_the_best_anchor_from_that_iou_on(anchors, objects, floor, block):
    levels, gt = make_levels(anchors), make_gt(objects)
    iou = pairwise_iou(gt.gt_boxes, Boxes.cat(levels))
    best = iou.amax(1, keepdim=True)
    promoted = ((iou == best) & (best >= floor)).any(0)
    without, matched_idxs = label_with_detectron2(levels, gt, promote=False)
    expected = torch.where(promoted, gt.gt_classes[matched_idxs], without)
    with mock.patch.object(anchor_matching, "CPU_BLOCK", block):
        actual = label(levels, gt, promotion="min_iou", promotion_min_iou=floor)
    assert_same(actual, (expected, matched_idxs))


@few_examples
@given(anchor_lists, object_lists, st.data(), st.sampled_from(BANDS))
def test_objects_without_area_and_crowds_count_as_absent(anchors, objects, data, bands):
    levels = make_levels(anchors)
    intruders = data.draw(st.lists(st.sampled_from(EMPTY_BOXES), min_size=1, max_size=3))
    crowds = data.draw(st.lists(whole_boxes, max_size=2))
    sources = [objects, intruders, crowds]
    kinds = data.draw(st.permutations([i for i in range(3) for _ in sources[i]]))
    remaining = list(map(iter, sources))
    mixed = [next(remaining[kind]) for kind in kinds]
    kept = torch.tensor([i for i, kind in enumerate(kinds) if kind == 0], dtype=torch.int64)
    classes = torch.arange(len(mixed)) % K
    options = {"iou_thresholds": bands[0], "iou_labels": bands[1]}

    labels, matched_idxs = label(levels, make_gt(objects, classes[kept]), **options)
    with_more = make_gt(mixed, classes, gt_is_crowd=[kind == 2 for kind in kinds])
    actual_labels, actual_idxs = label(levels, with_more, **options)
    torch.testing.assert_close(actual_labels, labels)
    positive = is_positive(labels)
    torch.testing.assert_close(actual_idxs[positive], kept[matched_idxs[positive]])


@pytest.mark.parametrize("box", [*EMPTY_BOXES[:3], [500, 500, 510, 510]])
def test_detectron2_makes_every_anchor_positive_and_we_none(box):
    """One box without area, or far from all anchors, has the same IoU, 0, with every anchor."""
    anchors, gt = feature_grid_anchors(64, 64), make_gt([box])
    check_ground_truth([{"instances": gt}], K)  # no error
    assert is_positive(label_with_detectron2(anchors, gt)[0]).all()
    assert (label(anchors, gt)[0] == K).all()


@pytest.mark.parametrize("bands", BANDS)
def test_image_without_objects_to_match_is_background(bands):
    anchors = feature_grid_anchors(64, 64)
    labeler = AnchorLabeler(num_classes=K, iou_thresholds=bands[0], iou_labels=bands[1])
    crowd = make_gt([[0, 0, 32, 32]], gt_is_crowd=[True])
    nothing = [make_gt([]), crowd, *[make_gt([box]) for box in EMPTY_BOXES]]
    labels, matched_idxs = labeler(anchors, [make_gt([[0, 0, 32, 32]]), *nothing])
    assert is_positive(labels[0]).any() and (labels[1:] == K).all()
    torch.testing.assert_close(labeler(anchors, nothing[:1])[0], labels[1:2])
    assert labels.shape == matched_idxs.shape == (len(nothing) + 1, sum(map(len, anchors)))
    assert labels.dtype == matched_idxs.dtype == torch.int64


@pytest.mark.parametrize("anchors", [[], [Boxes(torch.zeros(0, 4))]])
def test_objects_without_anchors(anchors):
    labels, matched_idxs = AnchorLabeler(num_classes=K)(anchors, [make_gt([[0, 0, 9, 9]])])
    assert labels.shape == matched_idxs.shape == (1, 0)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, [K, K, K]), (0.5, [-1, K, -1]), (0.7, [K, K, K]), (0.2, [-1, -1, -1])],
)
def test_crowds_make_background_ignored_by_share_of_the_anchor(threshold, expected):
    """An anchor that is its object, one in the ignored band, one half in a crowd, one 2 × 40 % in
    two crowds, one 60 % in a crowd."""
    anchors = [
        Boxes(torch.tensor([[0, 0, 10, 10], [0, 0, 10, 22], [95, 0, 105, 10]]).float()),
        Boxes(torch.tensor([[194, 0, 204, 10], [94, 40, 104, 50]]).float()),
    ]
    objects = [[0, 0, 10, 10], [0, 0, 100, 60], [190, 0, 198, 60], [200, 0, 220, 60]]
    gt = make_gt(objects, classes=[1, 3, 3, 3], gt_is_crowd=[False, True, True, True])
    assert label(anchors, gt, crowd_ioa_threshold=threshold)[0].tolist() == [1, -1, *expected]


def test_memory_does_not_grow_with_objects():
    anchors = feature_grid_anchors(200, 320)
    largest = []
    for labeling, count in [(label, 128), (label, 400), (label_with_detectron2, 400)]:
        with LargestTensor() as mode:
            labeling(anchors, random_gt(count, seed=0, extent=300.0))
        largest.append(mode.numel)
    assert largest[1] <= largest[0]
    assert largest[2] >= 400 * sum(map(len, anchors))


FLAT = [3.0, 3.0, 3.0, 3.0]  # without area, which must not hide a coordinate
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        *((FLAT, k, rf"class {k}, .*NUM_CLASSES") for k in (-1, K, 90)),
        *(
            ([*FLAT[:i], x, *FLAT[i + 1 :]], 0, "the box .*finite")
            for i, x in enumerate((NAN, INF, -INF))
        ),
    ],
)
def test_invalid_ground_truth_names_image_and_object(box, label, message):
    gts = make_gt([[0, 0, 9, 9]], [0]), make_gt([[0, 0, 9, 9], box], [0, label])
    inputs = [{"instances": gt} for gt in gts]
    with pytest.raises(ValueError, match=rf"^b\.jpg: object 1 has {message}"):
        check_ground_truth([{**inputs[0], "image_id": 7}, {**inputs[1], "file_name": "b.jpg"}], K)
    with pytest.raises(ValueError, match="^image 1 of the batch"):
        check_ground_truth(inputs, K)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_thresholds": ()}, "ascending"),
        ({"iou_thresholds": (0.5, 0.4)}, "ascending"),
        ({"iou_thresholds": (0.0, 0.4)}, "positive numbers"),
        ({"iou_labels": (0, 1)}, "3 bands"),
        ({"iou_labels": (0, 2, 1)}, "-1, 0 or 1 to each"),
        ({"iou_labels": (1, 0, 1)}, "lowest band"),
        ({"num_classes": 0}, "at least 1 class"),
        ({"promotion_min_iou": 40}, r"an IoU is in \[0, 1\]"),
        ({"promotion": "all"}, r"'all'; use one of \['any', 'min_iou', 'none'\]"),
        ({"crowd_ioa_threshold": 0.0}, "fraction"),
        ({"crowd_ioa_threshold": 70}, "fraction"),
    ],
)
def test_constructor_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        AnchorLabeler(**{"num_classes": K, **options})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu():
    anchors, gts = feature_grid_anchors(400, 640), [random_gt(n, n, 500.0) for n in (0, 5, 300)]
    labeler = AnchorLabeler(num_classes=K)
    actual = labeler([boxes.to("cuda") for boxes in anchors], [gt.to("cuda") for gt in gts])
    torch.testing.assert_close([x.cpu() for x in actual], list(labeler(anchors, gts)))
