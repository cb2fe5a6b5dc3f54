"""α: how much a positive weighs against a negative (paper section 3.1), one for all or per class.

A positive of class k weighs α_k, and a negative of class k weighs 1 - α_k. A scalar α < 0 means no
weights at all, as in Detectron2 and fvcore.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Alpha = float | Sequence[float]


def balanced_alpha(class_counts: Sequence[float], alpha: float) -> list[float]:
    """α of each class from its frequency: the rarer the class, the more its positives weigh.
    ValueError: a class without objects, or an ``alpha`` outside (0, 1).

    The odds α_k / (1 - α_k) are those of ``alpha`` times sqrt(g / n_k). n_k is the class's count, g
    the geometric mean of all counts. The paper (section 3.1) names inverse class frequency as a way
    to set α. Applied to the odds, it keeps each α_k within (0, 1). The square root is that of
    LVIS's repeat factors (Gupta et al., CVPR 2019): without it, positives of a class 1000 times as
    frequent would weigh almost nothing.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"class alphas from counts need a scalar alpha within (0, 1), not {alpha}")
    absent = [k for k, count in enumerate(class_counts) if count <= 0]
    if absent or not class_counts:
        raise ValueError(
            f"class alphas from counts: classes {absent} of {len(class_counts)} have no object in "
            "the training set; drop them from the data set or give each class's alpha as a list"
        )
    mean_log_count = sum(map(math.log, class_counts)) / len(class_counts)
    log_odds = math.log(alpha / (1 - alpha))
    shifts = [(mean_log_count - math.log(count)) / 2 for count in class_counts]
    return [1 / (1 + math.exp(-(log_odds + shift))) for shift in shifts]


def count_objects(records: Iterable[dict], num_classes: int) -> list[int]:
    """Objects of each of the K classes in Detectron2's records of images, without crowds;
    ValueError for a class outside 0 … K-1."""
    objects = [x for record in records for x in record["annotations"] if not x.get("iscrowd", 0)]
    counts = Counter(x["category_id"] for x in objects)
    outside = sorted(k for k in counts if not 0 <= k < num_classes)
    if outside:
        raise ValueError(
            f"the training set has objects of the classes {outside}, but "
            f"MODEL.RETINANET.NUM_CLASSES is {num_classes}, so classes are 0 to {num_classes - 1}"
        )
    return [counts[k] for k in range(num_classes)]


def alpha_from_config(cfg: Any, class_counts: Sequence[int] | None) -> Alpha:
    """The α of the config: the scalar, the list, or the list made from class counts; ValueError
    for an unknown CLASS_ALPHA, ``"auto"`` without counts, or not one value per class."""
    alpha, num_classes = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.MODEL.RETINANET.NUM_CLASSES
    class_alpha = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA
    key = "MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA"
    if not class_alpha:
        return alpha
    values = class_counts if class_alpha == "auto" else class_alpha
    if not isinstance(values, Sequence) or any(isinstance(x, str) for x in values):
        raise ValueError(
            f"{key} is {class_alpha!r}: give nothing, a list of numbers, or 'auto' with the class "
            "counts: build_cls_loss(cfg, class_counts=…)"
        )
    if len(values) != num_classes:
        raise ValueError(
            f"{key} has {len(values)} values, but MODEL.RETINANET.NUM_CLASSES is {num_classes}"
        )
    return balanced_alpha(values, alpha) if class_alpha == "auto" else [float(a) for a in values]
