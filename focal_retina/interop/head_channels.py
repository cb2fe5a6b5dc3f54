"""Output channels of the two subnets: how many classes and anchors, and in which order.

Shapes: K classes, A anchors a position. A classification output has A x rows channels, a box output
    A x 4; there may be more rows than classes.
"""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from .adapter import Adapter, Tensors, check_count
from .spec import OUTPUTS, anchors_per_position

_CLS, _BOX = OUTPUTS.values()
_COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_COCO_ROWS = 91  # rows 0, and 1 to 90 for category numbers, eleven of which nothing has
_UNUSED_LOGIT = -math.log(0.99 / 0.01)  # as untrained: a score of .01 (paper section 3.3)


def read_head(ours: Tensors, source: Adapter, spec: CfgNode) -> tuple[int, list[int]]:
    """Change the outputs to Detectron2's classes and order of anchors; return the source's
    classification rows of an anchor, and which of them the K classes are."""
    num_anchors, num_classes = anchors_per_position(spec), spec.MODEL.RETINANET.NUM_CLASSES
    num_rows = count_rows(len(ours[f"{_CLS}.bias"]), len(ours[f"{_BOX}.bias"]), num_anchors)
    rows = class_rows(num_rows, num_classes, has_background_row=source.has_background_row)
    for output, used, count in ((_CLS, rows, num_rows), (_BOX, range(4), 4)):
        channels = channels_of(spec, used, count, sizes_vary_fastest=source.sizes_vary_fastest)
        for name in (f"{output}.weight", f"{output}.bias"):
            ours[name] = ours[name][channels]
    return num_rows, rows


def write_head(ours: Tensors, target: Adapter, spec: CfgNode, num_rows: int | None) -> int:
    """The inverse of :func:`read_head`; a row of no class always scores .01.

    Takes and returns the target's classification rows of an anchor; None: as it has them for K.
    """
    has_background, num_classes = target.has_background_row, spec.MODEL.RETINANET.NUM_CLASSES
    if not has_background:
        num_rows = num_classes
    elif num_rows is None:
        num_rows = _COCO_ROWS if num_classes == len(_COCO_IDS) else num_classes + 1
    rows = class_rows(num_rows, num_classes, has_background_row=has_background)
    for output, used, count in ((_CLS, rows, num_rows), (_BOX, range(4), 4)):
        channels = channels_of(spec, used, count, sizes_vary_fastest=target.sizes_vary_fastest)
        for name, unused in ((f"{output}.weight", 0.0), (f"{output}.bias", _UNUSED_LOGIT)):
            shape = (anchors_per_position(spec) * count, *ours[name].shape[1:])
            written = ours[name].new_full(shape, unused)
            written[channels] = ours[name]
            ours[name] = written
    return num_rows


def count_rows(num_cls_channels: int, num_box_channels: int, num_anchors: int) -> int:
    """Classification rows of an anchor. The box output tells A; the product alone does not, as 720
    is 9 x 80 and 12 x 60.
    """
    what = f"the box output has {num_box_channels} channels, which is {{:g}} anchors a position"
    check_count(what, num_box_channels / 4, num_anchors, "--num-anchors")
    if num_cls_channels % num_anchors:
        raise ValueError(
            f"the classification output has {num_cls_channels} channels, which is no multiple of "
            f"{num_anchors} anchors"
        )
    return num_cls_channels // num_anchors


def class_rows(num_rows: int, num_classes: int, *, has_background_row: bool) -> list[int]:
    """The row, of an anchor's in the file, of each of Detectron2's K contiguous classes.

    Row 0 may be a background that nothing is assigned to (torchvision).
    """
    if has_background_row and num_rows == num_classes + 1:
        return list(range(1, num_rows))
    if has_background_row and (num_rows, num_classes) == (_COCO_ROWS, len(_COCO_IDS)):
        return list(_COCO_IDS)
    check_count("the file has {} classes an anchor", num_rows, num_classes, "--num-classes")
    return list(range(num_rows))


def channels_of(
    spec: CfgNode, rows: Sequence[int], num_rows: int, *, sizes_vary_fastest: bool
) -> Tensor:
    """A library's channel (A x len(rows),) for each of ours, whose aspect ratios vary fastest;
    ``rows`` are those of an anchor's ``num_rows`` that we have, in our order."""
    order = torch.arange(anchors_per_position(spec))
    if sizes_vary_fastest:
        order = order.view(len(spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]), -1).t().flatten()
    return (order[:, None] * num_rows + torch.tensor(rows)).flatten()
