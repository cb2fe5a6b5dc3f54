"""Our anchor labeling beside Detectron2's, of one image."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from focal_retina.modeling.anchor_labeling import AnchorLabeler

from .inputs import make_anchors, make_gt
from .timing import Candidate, Case

NUM_CLASSES = 80


class Size(NamedTuple):
    """Of an image and of what is in it; 800 × 1344 px have 201,600 anchors."""

    objects: int
    height: int = 800
    width: int = 1344


SIZES = tuple(map(Size, (0, 8, 100, 1000)))
# Objects alone, then anchors alone, each a few times the one before.
SCALING = (
    *map(Size, (0, 8, 30, 100, 300, 1000, 3000)),
    *(Size(100, h, w) for h, w in ((200, 336), (400, 672), (800, 1344), (1600, 2688))),
)


def cases(device: torch.device, sizes: Sequence[Size], peers: bool = True) -> Iterator[Case]:
    """Both label all anchors of the image."""
    for objects, *image_size in sizes:
        anchors = make_anchors(tuple(image_size), device)
        gt = make_gt(objects, tuple(image_size), NUM_CLASSES).to(device)
        labelers = {"ours": AnchorLabeler(num_classes=NUM_CLASSES)}
        if peers:
            labelers["Detectron2"] = label_as_detectron2
        candidates: dict[str, Candidate] = {
            name: lambda label=label, anchors=anchors, gt=gt: label(anchors, [gt])
            for name, label in labelers.items()
        }
        yield f"{objects:,} objects × {sum(map(len, anchors)):,} anchors", candidates


def label_as_detectron2(anchors: list, gt: list) -> tuple[list, list]:
    """``RetinaNet.label_anchors`` of Detectron2 without the model round it."""
    model = SimpleNamespace(
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=NUM_CLASSES,
    )
    return RetinaNet.label_anchors(model, anchors, gt)
