"""AnchorLabeler: parity with Detectron2's matcher, and the laws that Detectron2 breaks."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from focal_retina.modeling import anchor_labeling
from focal_retina.modeling.anchor_labeling import AnchorLabeler

K = 5
IMAGE_SIZE = (64, 64)
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


def make_gt(boxes, classes=None, **fields) -> Instances:
    gt = Instances(IMAGE_SIZE)
    gt.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    count = len(gt.gt_boxes)
    gt.gt_classes = torch.arange(count) % K if classes is None else torch.as_tensor(classes)
    for name, value in fields.items():
        gt.set(name, torch.as_tensor(value))
    return gt


def make_levels(anchors) -> list[Boxes]:
    """Two levels, the second with an anchor that overlaps all objects.

    With it, no object is left at IoU 0, where Detectron2 would make every anchor positive.
    """
    anchors = torch.tensor([*anchors, [-1, -1, 30, 30]], dtype=torch.float32)
    return [Boxes(anchors[: len(anchors) // 2]), Boxes(anchors[len(anchors) // 2 :])]


def random_gt(count: int, seed: int, extent: float = 64.0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator) * extent
    classes = torch.randint(K, (count,), generator=generator)
    return make_gt(torch.cat([corner, corner + size / 2 + 0.1], dim=1), classes)


def feature_grid_anchors(height: int, width: int) -> list[Boxes]:
    """The anchors of Detectron2's RetinaNet."""
    strides = [8, 16, 32, 64, 128]
    sizes = [[4 * stride * 2 ** (k / 3) for k in range(3)] for stride in strides]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides
    )
    return generator([torch.empty(1, 1, -(-height // s), -(-width // s)) for s in strides])


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
    promotion = "any" if promote else "none"
    with mock.patch.object(anchor_labeling, "CPU_BLOCK", block):
        actual = label(
            levels, gt, iou_thresholds=bands[0], iou_labels=bands[1], promotion=promotion
        )
    assert_same(actual, label_with_detectron2(levels, gt, *bands, promote))


@pytest.mark.parametrize("count", [1, 8, 150])
def test_equals_detectron2_on_a_feature_pyramid(count):
    anchors, gt = feature_grid_anchors(320, 480), random_gt(count, seed=count, extent=350.0)
    expected = label_with_detectron2(anchors, gt)
    assert is_positive(expected[0]).sum() >= count
    assert_same(label(anchors, gt), expected)


@pytest.mark.parametrize("block", [(1000, 1), (999, 7), (100_000, 500)])
def test_block_shape_changes_nothing(block):
    anchors, gt = feature_grid_anchors(256, 256), random_gt(40, seed=0, extent=250.0)
    expected = label(anchors, gt, promotion="min_iou")
    with mock.patch.object(anchor_labeling, "CPU_BLOCK", block):
        actual = label(anchors, gt, promotion="min_iou")
    torch.testing.assert_close(actual, expected)


@few_examples
@given(anchor_lists, object_lists.filter(len), st.sampled_from([0.1, 0.4, 0.7]), blocks)
def test_min_iou_promotes_ties_of_the_best_anchor_from_that_iou_on(anchors, objects, floor, block):
    levels, gt = make_levels(anchors), make_gt(objects)
    iou = pairwise_iou(gt.gt_boxes, Boxes.cat(levels))
    best = iou.amax(1, keepdim=True)
    promoted = ((iou == best) & (best >= floor)).any(0)
    without, matched_idxs = label_with_detectron2(levels, gt, promote=False)
    expected = torch.where(promoted, gt.gt_classes[matched_idxs], without)
    with mock.patch.object(anchor_labeling, "CPU_BLOCK", block):
        actual = label(levels, gt, promotion="min_iou", promotion_min_iou=floor)
    assert_same(actual, (expected, matched_idxs))


def test_promotion_by_hand():
    # IoU with the object: .3 (twice), .2, 0.
    anchors = [
        Boxes(torch.tensor([[0, 0, 3, 10], [7, 0, 10, 10], [4, 0, 6, 10], [20, 20, 30, 30.0]]))
    ]
    gt = make_gt([[0, 0, 10, 10]], classes=[2])
    assert label(anchors, gt, promotion="none")[0].tolist() == [K, K, K, K]
    assert label(anchors, gt, promotion="min_iou")[0].tolist() == [K, K, K, K]
    assert label(anchors, gt, promotion="any")[0].tolist() == [2, 2, K, K]
    low = label(anchors, gt, promotion="min_iou", promotion_min_iou=0.3)
    assert low[0].tolist() == [2, 2, K, K]


def test_first_of_equal_objects_is_matched():
    anchors = [Boxes(torch.tensor([[0, 0, 10, 10.0]]))]
    gt = make_gt([[0, 0, 3, 3], [0, 0, 10, 9], [0, 1, 10, 10], [0, 0, 10, 9]], classes=[0, 1, 2, 3])
    labels, matched_idxs = label(anchors, gt)
    assert (labels.item(), matched_idxs.item()) == (1, 1)


@few_examples
@given(anchor_lists, object_lists, st.data(), st.sampled_from(BANDS))
def test_objects_without_area_and_crowds_count_as_absent(anchors, objects, data, bands):
    levels = make_levels(anchors)
    intruders = data.draw(st.lists(st.sampled_from(EMPTY_BOXES), min_size=1, max_size=3))
    crowds = data.draw(st.lists(whole_boxes, max_size=2))
    kinds = data.draw(
        st.permutations([0] * len(objects) + [1] * len(intruders) + [2] * len(crowds))
    )
    sources = [iter(objects), iter(intruders), iter(crowds)]
    mixed = [next(sources[kind]) for kind in kinds]
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
    assert is_positive(label_with_detectron2(anchors, gt)[0]).all()
    assert (label(anchors, gt)[0] == K).all()


def test_band_includes_its_lower_border():
    # IoU with the object, in tenths: 2 (below), 4 and 5 (borders), 9.
    anchors = [Boxes(torch.tensor([[0, 0, 2, 10], [0, 0, 4, 10], [0, 0, 5, 10], [0, 0, 9, 10.0]]))]
    gt = make_gt([[0, 0, 10, 10]], classes=[2])
    assert label(anchors, gt)[0].tolist() == [K, -1, 2, 2]
    assert_same(label(anchors, gt), label_with_detectron2(anchors, gt))


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


def test_images_of_a_batch_are_labeled_independently():
    anchors, gts = feature_grid_anchors(128, 128), [random_gt(n, seed=n) for n in (3, 20, 1)]
    labels, matched_idxs = AnchorLabeler(num_classes=K)(anchors, gts)
    for i, gt in enumerate(gts):
        torch.testing.assert_close((labels[i], matched_idxs[i]), label(anchors, gt))
    assert AnchorLabeler(num_classes=K)(anchors, [])[0].shape == (0, labels.shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_order_of_objects_is_irrelevant(seed):
    anchors, gt = feature_grid_anchors(128, 128), random_gt(30, seed, extent=120.0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    labels, matched_idxs = label(anchors, gt)
    shuffled_labels, shuffled_idxs = label(anchors, gt[order])
    torch.testing.assert_close(shuffled_labels, labels)
    positive = is_positive(labels)
    torch.testing.assert_close(order[shuffled_idxs[positive]], matched_idxs[positive])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (None, [1, -1, K, K, K]),
        (0.5, [1, -1, -1, K, -1]),
        (0.7, [1, -1, K, K, K]),
        (0.2, [1, -1, -1, -1, -1]),
    ],
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
    assert label(anchors, gt, crowd_ioa_threshold=threshold)[0].tolist() == expected


def test_crowd_in_an_image_without_other_objects():
    anchors = [Boxes(torch.tensor([[0, 0, 10, 10], [90, 90, 100, 100.0]]))]
    gt = make_gt([[0, 0, 50, 50]], gt_is_crowd=[True])
    assert label(anchors, gt, crowd_ioa_threshold=0.7)[0].tolist() == [-1, K]


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_memory_does_not_grow_with_objects():
    anchors = feature_grid_anchors(400, 640)
    few, many = random_gt(8, seed=0, extent=600.0), random_gt(800, seed=0, extent=600.0)
    largest = []
    for labeling, gt in [(label, few), (label, many), (label_with_detectron2, many)]:
        with LargestTensor() as mode:
            labeling(anchors, gt)
        largest.append(mode.numel)
    assert largest[1] <= largest[0]
    assert largest[2] >= len(many) * sum(map(len, anchors))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu():
    anchors, gts = feature_grid_anchors(400, 640), [random_gt(n, n, 500.0) for n in (0, 5, 300)]
    labeler = AnchorLabeler(num_classes=K)
    actual = labeler([boxes.to("cuda") for boxes in anchors], [gt.to("cuda") for gt in gts])
    torch.testing.assert_close([x.cpu() for x in actual], list(labeler(anchors, gts)))
