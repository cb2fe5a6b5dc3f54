"""What can be wrong with a box, for the check and for leaving the box out.

Shapes: M boxes.
"""

import numpy as np

from .kinds import MOSTLY_OUTSIDE, OVERHANG

# Detectron2's mapper drops boxes up to this wide or high, once they are at the network's scale.
_THIN = 1e-5


def box_faults(boxes: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Sort boxes into the kinds of fault that concern a box alone; each has at most one.

    Args:
        boxes: float64 (M, 4), x, y, width, height in pixels.
        image_sizes: float64 (M, 2), width and height of each box's image; NaN where unknown, and
            then no box is outside.

    Returns:
        For each of ``box_not_finite``, ``negative_size``, ``zero_area``, ``box_outside`` and
        ``box_over_border`` a mask, bool (M,).
    """
    start, extent = boxes[:, :2], boxes[:, 2:]
    rest = np.isfinite(boxes).all(axis=1)
    faults = {"box_not_finite": ~rest}
    with np.errstate(invalid="ignore", over="ignore"):
        end = start + extent
        tests = {
            "negative_size": (extent < 0).any(axis=1),
            "zero_area": (extent <= _THIN).any(axis=1),
            "box_outside": ((start >= image_sizes) | (end <= 0)).any(axis=1),
            "box_over_border": (
                (start < -OVERHANG) | (end > image_sizes + OVERHANG)  # NaN compares as False
            ).any(axis=1),
        }
    for kind, is_faulty in tests.items():
        faults[kind] = rest & is_faulty
        rest = rest & ~is_faulty
    return faults


def guess_format(boxes: np.ndarray, image_sizes: np.ndarray) -> str | None:
    """Tell whether boxes that should be x, y, width, height in pixels are something else.

    Args:
        boxes, image_sizes: as for :func:`box_faults`.

    Returns:
        What they look like, or None if nothing speaks against pixels.
    """
    known = np.isfinite(boxes).all(axis=1) & np.isfinite(image_sizes).all(axis=1)
    start, extent, sizes = boxes[known, :2], boxes[known, 2:], image_sizes[known]
    if len(start) == 0:
        return None
    if (start >= 0).all() and (start + extent <= 1).all() and (extent > 0).all():
        return "numbers between 0 and 1, fractions of the image's size"
    over = (start + extent > sizes + OVERHANG).any(axis=1).mean()
    are_corners = (extent > start).all() and (extent <= sizes + OVERHANG).all()
    if over > MOSTLY_OUTSIDE and are_corners:
        return f"[x1, y1, x2, y2]: read as [x, y, width, height], {over:.0%} leave their image"
    return None
