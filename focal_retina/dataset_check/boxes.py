"""What can be wrong with a box alone; the checks, skipping and anchor coverage share it.

Shapes: M boxes.
"""

import numpy as np

# Detectron2's mapper drops boxes up to this wide or high, once they are at the network's scale.
_THIN = 1e-5
# Pixels by which a box may reach over the border, which rounding explains.
_OVERHANG = 1.0
# Share of boxes over the border from which on they look like [x1, y1, x2, y2].
_MOSTLY_OUTSIDE = 0.1


def box_faults(boxes: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Sort boxes by the first of these checks that they fail.

    Args:
        boxes: float64 (M, 4), x, y, width, height in pixels.
        image_sizes: float64 (M, 2), width and height of each box's image; NaN where unknown, and
            then no box is outside.

    Returns:
        For the check of each name a mask, bool (M,); no box is in two of them.
    """
    start, extent = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        end = start + extent
        faults = {
            "box_not_finite": ~np.isfinite(boxes).all(axis=1),
            "negative_size": (extent < 0).any(axis=1),
            "zero_area": (extent <= _THIN).any(axis=1),
            "box_outside": ((start >= image_sizes) | (end <= 0)).any(axis=1),
            "box_over_border": (
                (start < -_OVERHANG) | (end > image_sizes + _OVERHANG)  # NaN compares as False
            ).any(axis=1),
        }
    rest = np.ones(len(boxes), dtype=bool)
    for name, is_faulty in faults.items():
        faults[name] = rest & is_faulty
        rest &= ~is_faulty
    return faults


def guess_format(boxes: np.ndarray, image_sizes: np.ndarray) -> str | None:
    """Say what boxes look like that are not x, y, width, height in pixels; None where they may be.

    Args:
        boxes, image_sizes: as for :func:`box_faults`.
    """
    known = np.isfinite(boxes).all(axis=1) & np.isfinite(image_sizes).all(axis=1)
    start, extent, sizes = boxes[known, :2], boxes[known, 2:], image_sizes[known]
    if len(start) == 0:
        return None
    if (start >= 0).all() and (start + extent <= 1).all() and (extent > 0).all():
        return "numbers between 0 and 1, fractions of the image's size"
    over = (start + extent > sizes + _OVERHANG).any(axis=1).mean()
    are_corners = (extent > start).all() and (extent <= sizes + _OVERHANG).all()
    if over > _MOSTLY_OUTSIDE and are_corners:
        return f"[x1, y1, x2, y2]: read as [x, y, width, height], {over:.0%} leave their image"
    return None
