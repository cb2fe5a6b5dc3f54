"""α: how much a positive weighs against a negative (paper section 3.1), one for all or per class.

The positive of class k weighs α_k and a negative of class k 1 - α_k. A scalar α < 0 means no
weights at all, as in Detectron2 and fvcore.
"""

import math
from collections.abc import Sequence


def check_alpha(alpha: float | Sequence[float]) -> None:
    """Raise ValueError where ``alpha`` is no weight: above 1, or, in a list, outside [0, 1]."""
    if isinstance(alpha, Sequence):
        wrong = {k: a for k, a in enumerate(alpha) if not 0 <= a <= 1}
        if wrong or not alpha:
            raise ValueError(
                f"each class's alpha must be in [0, 1]; of {len(alpha)}, wrong: {wrong}"
            )
    elif not alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it must be in [0, 1], or negative for no weighting")


def balanced_alpha(class_counts: Sequence[int], alpha: float) -> list[float]:
    """α of each class from how frequent it is: the rarer the class, the more its positives weigh.

    The odds α_k / (1 - α_k), the weight of a positive against that of a negative, are those of
    ``alpha`` times sqrt(g / n_k): n_k is the class's count, g the geometric mean of the counts.

    The paper (section 3.1) names inverse class frequency as a way to set α. It is applied to the
    odds because each α_k then stays within (0, 1) without clipping, however uneven the classes,
    and because the geometric mean of the odds stays that of ``alpha``: classes of one size all get
    ``alpha``. The square root tempers it, as in LVIS's repeat factors (Gupta et al., CVPR 2019),
    where the plain inverse would all but remove the positives of a class 1000 times as frequent.

    Args:
        class_counts: objects of each class in the training set.
        alpha: the scalar α to spread, in (0, 1).

    Raises:
        ValueError: a class without objects, or an ``alpha`` outside (0, 1).
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


def resolve_alpha(
    alpha: float,
    class_alpha: Sequence[float] | str | None,
    num_classes: int,
    class_counts: Sequence[int] | None,
) -> float | list[float]:
    """The α that the config asks for: the scalar, the list, or the list made from class counts.

    Args:
        alpha: ``MODEL.RETINANET.FOCAL_LOSS_ALPHA``.
        class_alpha: ``MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA``: nothing, K numbers or ``"auto"``.
        num_classes: K.
        class_counts: objects of each class in the training set, where known.

    Raises:
        ValueError: anything else, ``"auto"`` without counts, or not K of them.
    """
    key = "MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA"
    if not class_alpha:
        return alpha
    if class_alpha == "auto":
        if class_counts is None:
            raise ValueError(
                f'{key} is "auto", but nobody passed the class counts: '
                "call build_cls_loss(cfg, class_counts=…), or give the alphas as a list"
            )
        _check_length(len(class_counts), num_classes, "the class counts")
        return balanced_alpha(class_counts, alpha)
    if isinstance(class_alpha, str):
        raise ValueError(f'{key} is {class_alpha!r}: give nothing, a list of numbers or "auto"')
    _check_length(len(class_alpha), num_classes, key)
    return [float(a) for a in class_alpha]


def _check_length(length: int, num_classes: int, what: str) -> None:
    if length != num_classes:
        raise ValueError(
            f"{what}: {length} values for MODEL.RETINANET.NUM_CLASSES = {num_classes} classes"
        )
