"""Our anchor labeling beside Detectron2's, of one image."""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from focal_retina.modeling.anchor_labeling import AnchorLabeler

from .inputs import make_anchors, make_gt
from .timing import Case

NUM_CLASSES = 80


class Size(NamedTuple):
    """Of an image and of what is in it; 800 × 1344 px have 201,600 anchors."""

    objects: int
    height: int = 800
    width: int = 1344


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    # RetinaNet.label_anchors without the model round it
    stock = SimpleNamespace(anchor_matcher=matcher, num_classes=NUM_CLASSES)
    for objects, height, width in sizes:
        anchors = make_anchors((height, width), device)
        gt = [make_gt(objects, (height, width), NUM_CLASSES).to(device)]
        candidates = {
            "ours": partial(AnchorLabeler(num_classes=NUM_CLASSES), anchors, gt),
            "Detectron2": partial(RetinaNet.label_anchors, stock, anchors, gt),
        }
        yield f"{objects:,} objects × {sum(map(len, anchors)):,} anchors", candidates
