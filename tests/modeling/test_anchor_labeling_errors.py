"""What anchor labeling refuses: ground truth that is invalid, options that make no sense."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from focal_retina.modeling.anchor_labeling import AnchorLabeler, check_gt_instances

K = 5


def make_gt(boxes, classes=None) -> Instances:
    gt = Instances((64, 64))
    gt.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return gt


@pytest.mark.parametrize("value", [-1, K, 90])
def test_class_out_of_range_names_image_and_class(value):
    gts = [make_gt([[0, 0, 9, 9]]), make_gt([[0, 0, 9, 9], [1, 1, 5, 5]], classes=[0, value])]
    with pytest.raises(ValueError, match=rf"^b\.jpg: object 1 has class {value}, .*NUM_CLASSES"):
        check_gt_instances(gts, K, ["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match="image 1 of the batch"):
        check_gt_instances(gts, K)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_box_that_is_not_finite_names_the_image(position, value):
    box = [3.0, 3.0, 3.0, 3.0]  # without area, which must not hide the coordinate
    box[position] = value
    gts = [make_gt([[0, 0, 9, 9]]), make_gt([[0, 0, 9, 9], box])]
    with pytest.raises(ValueError, match=r"^b\.jpg: object 1 has the box .*not a finite"):
        check_gt_instances(gts, K, ["a.jpg", "b.jpg"])


def test_box_with_overflowing_area_is_refused():
    with pytest.raises(ValueError, match="not a finite"):
        check_gt_instances([make_gt([[-1e30, -1e30, 1e30, 1e30]])], K)


def test_valid_ground_truth_passes():
    check_gt_instances([], K)
    check_gt_instances(
        [make_gt([]), make_gt([[0, 0, 9, 9], [3, 3, 3, 9], [9, 9, 3, 3]])], K, ["a.jpg", "b.jpg"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_thresholds": ()}, "ascending"),
        ({"iou_thresholds": (0.5, 0.4)}, "ascending"),
        ({"iou_thresholds": (0.0, 0.4)}, "positive numbers"),
        ({"iou_labels": (0, 1)}, "3 bands"),
        ({"iou_labels": (0, 2, 1)}, "-1, 0 or 1 to each"),
        ({"iou_labels": (1, 0, 1)}, "lowest band"),
        ({"promotion": "all"}, r"'all'; use one of \['any', 'min_iou', 'none'\]"),
        ({"crowd_ioa_threshold": 0.0}, "fraction"),
        ({"crowd_ioa_threshold": 70}, "fraction"),
    ],
)
def test_constructor_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        AnchorLabeler(num_classes=K, **options)
