"""What ``tools/benchmark.py labeling`` measures: our anchor labeling beside Detectron2's.

The inputs and the candidates are here; how they are measured is :mod:`.timing`'s affair.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances

from ..modeling.anchor_labeling import AnchorLabeler
from .timing import Candidate, Case

NUM_CLASSES = 80
IMAGE_SIZE = (800, 1344)
COMPARED = tuple((objects, IMAGE_SIZE) for objects in (0, 8, 100, 1000))
# Objects alone, then anchors alone, each a few times the one before.
SCALING = (
    *((objects, IMAGE_SIZE) for objects in (0, 8, 30, 100, 300, 1000, 3000)),
    *((100, size) for size in ((200, 336), (400, 672), (800, 1344), (1600, 2688))),
)


def comparison_cases(device: torch.device | str) -> Iterator[Case]:
    """Our labeling and Detectron2's of one image with 201,600 anchors, by the number of objects.

    Yields:
        a title and the candidates by name, ours first, each doing the whole job when called.
    """
    for objects, image_size in COMPARED:
        anchors, gt = make_anchors(image_size, device), make_gt(objects, image_size, device)
        yield (
            _title(anchors, gt),
            {"ours": label_ours(anchors, gt), "Detectron2": label_peer(anchors, gt)},
        )


def scaling_cases(device: torch.device | str) -> Iterator[Case]:
    """Our labeling alone as objects and anchors grow, in the form of :func:`comparison_cases`."""
    for objects, image_size in SCALING:
        anchors, gt = make_anchors(image_size, device), make_gt(objects, image_size, device)
        yield _title(anchors, gt), {"ours": label_ours(anchors, gt)}


def label_ours(anchors: list[Boxes], gt: Instances) -> Candidate:
    labeler = AnchorLabeler(num_classes=NUM_CLASSES)
    return lambda: labeler(anchors, [gt])


def label_peer(anchors: list[Boxes], gt: Instances) -> Candidate:
    """``RetinaNet.label_anchors`` of Detectron2 without the model round it."""
    model = SimpleNamespace(
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=NUM_CLASSES,
    )
    return lambda: RetinaNet.label_anchors(model, anchors, [gt])


def make_anchors(image_size: tuple[int, int], device: torch.device | str) -> list[Boxes]:
    """The anchors of Detectron2's RetinaNet on P3…P7: 9 a cell (paper, section 4)."""
    strides = [8, 16, 32, 64, 128]
    generator = DefaultAnchorGenerator(
        sizes=[[4 * stride * 2 ** (k / 3) for k in range(3)] for stride in strides],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=strides,
    ).to(device)
    cells = [[-(-side // stride) for side in image_size] for stride in strides]
    return generator([torch.empty(1, 1, *hw, device=device) for hw in cells])


def make_gt(
    objects: int, image_size: tuple[int, int], device: torch.device | str, seed: int = 0
) -> Instances:
    """Objects of 10 to 300 px (log-uniform), of varied shape, anywhere inside the image."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 * 30 ** torch.rand(objects, 1, generator=generator)
    stretch = torch.exp(0.4 * torch.randn(objects, 1, generator=generator))
    height, width = image_size
    room = torch.tensor([[width, height]])
    sides = torch.cat([scale * stretch, scale / stretch], dim=1).minimum(room)
    corners = torch.rand(objects, 2, generator=generator) * (room - sides)
    gt = Instances(image_size)
    gt.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
    gt.gt_classes = torch.randint(NUM_CLASSES, (objects,), generator=generator)
    return gt.to(device)


def _title(anchors: list[Boxes], gt: Instances) -> str:
    return f"{len(gt):,} objects × {sum(map(len, anchors)):,} anchors"
