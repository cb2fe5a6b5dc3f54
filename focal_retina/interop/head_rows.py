"""Output channels of the two subnets: how many classes and anchors, and in which order.

Shapes: K classes, A anchors a position = S sizes x Q aspect ratios. A classification output has A x
    rows channels, a box output A x 4; there may be more rows than classes.
"""

import math

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from .structure import AnchorSettings

_COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_COCO_ROWS = 91  # rows 0, and 1 to 90 for category numbers, eleven of which nothing has
_UNUSED_LOGIT = -math.log(0.99 / 0.01)  # as untrained: a score of .01 (paper section 3.3)


def count_rows(num_cls_channels: int, num_box_channels: int, num_anchors: int) -> int:
    """Classification rows of an anchor.

    The box output tells A; the product alone does not, as 720 is 9 x 80 and 12 x 60.

    Raises:
        ValueError: the channels are not those of ``num_anchors``.
    """
    if num_box_channels != 4 * num_anchors:
        found = num_box_channels / 4
        raise ValueError(
            f"the box output has {num_box_channels} channels, which is {found:g} anchors a "
            f"position, and not the {num_anchors} that are stated (--num-anchors, or the config)"
        )
    if num_cls_channels % num_anchors:
        raise ValueError(
            f"the classification output has {num_cls_channels} channels, which is no multiple of "
            f"{num_anchors} anchors"
        )
    return num_cls_channels // num_anchors


def class_rows(num_rows: int, num_classes: int, *, has_background_row: bool) -> list[int]:
    """The row of each of Detectron2's K contiguous classes.

    Args:
        num_rows: of an anchor in the file.
        has_background_row: row 0 may be a background that nothing is assigned to (torchvision).

    Raises:
        ValueError: such a file does not hold ``num_classes``.
    """
    if num_rows == num_classes:
        return list(range(num_rows))
    if has_background_row and num_rows == num_classes + 1:
        return list(range(1, num_rows))
    if has_background_row and (num_rows, num_classes) == (_COCO_ROWS, len(_COCO_IDS)):
        return list(_COCO_IDS)
    raise ValueError(
        f"the file has {num_rows} classes an anchor, and not the {num_classes} that are stated "
        "(--num-classes, or the config)"
    )


def rows_to_write(num_classes: int, *, has_background_row: bool) -> int:
    """Rows an anchor of a file for K classes: the inverse of :func:`class_rows`."""
    if not has_background_row:
        return num_classes
    return _COCO_ROWS if num_classes == len(_COCO_IDS) else num_classes + 1


def read_channels(
    tensor: Tensor, anchors: AnchorSettings, rows: list[int], *, sizes_vary_fastest: bool
) -> Tensor:
    """Weight or bias (A x rows, …) of a file to (A x len(rows), …), aspect ratios varying fastest.

    Args:
        rows: which to take, in order.
    """
    num_anchors = anchors.per_position
    tensor = tensor.view(num_anchors, -1, *tensor.shape[1:])
    if sizes_vary_fastest:
        tensor = _swap(tensor, len(anchors.ratios))
    return tensor[:, rows].flatten(0, 1).contiguous()


def write_channels(
    tensor: Tensor,
    anchors: AnchorSettings,
    rows: list[int],
    num_rows: int,
    *,
    sizes_vary_fastest: bool,
) -> Tensor:
    """The inverse of :func:`read_channels`; a row that is not among ``rows`` always scores .01."""
    num_anchors = anchors.per_position
    tensor = tensor.view(num_anchors, len(rows), *tensor.shape[1:])
    is_bias = tensor.dim() == 2
    written = torch.full_like(tensor[:, :1], _UNUSED_LOGIT if is_bias else 0.0)
    written = written.repeat_interleave(num_rows, dim=1)
    written[:, rows] = tensor
    if sizes_vary_fastest:
        written = _swap(written, len(anchors.sizes[0]))
    return written.flatten(0, 1).contiguous()


def _swap(tensor: Tensor, outer: int) -> Tensor:
    """Of (A, …) with A = outer x inner, inner varying fastest: the outer one varies fastest."""
    return tensor.unflatten(0, (outer, -1)).transpose(0, 1).flatten(0, 1)
