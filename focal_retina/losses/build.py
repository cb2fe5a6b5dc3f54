"""From config to modules: the only place of ``losses`` that chooses by name."""

from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from .normalizer import BatchNormalizer, EmaNormalizer, ImageNormalizer

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = "Classification losses; focal_retina.losses has their contract."


def build_cls_loss(cfg: Any, class_counts: Sequence[int] | None = None) -> nn.Module:
    """Build the loss that ``MODEL.FOCAL_RETINA.CLS_LOSS.NAME`` names.

    A class with a ``from_config(cfg, class_counts)`` classmethod is built with the keyword
    arguments that it returns, any other class with none.

    ``class_counts``, the objects of each class in the training set, are needed for
    ``CLS_LOSS.CLASS_ALPHA: auto`` only.

    Raises:
        ValueError: an unknown name, or values that the loss refuses.
    """
    name = cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME
    if name not in CLS_LOSS_REGISTRY:
        known = ", ".join(sorted(key for key, _ in CLS_LOSS_REGISTRY))
        raise ValueError(
            f"MODEL.FOCAL_RETINA.CLS_LOSS.NAME is {name!r}, but the registered losses are {known}. "
            "The file of a loss of your own must be imported before the model is built."
        )
    loss_class: Any = CLS_LOSS_REGISTRY.get(name)
    if not hasattr(loss_class, "from_config"):
        return loss_class()
    return loss_class(**loss_class.from_config(cfg, class_counts))


def build_loss_normalizer(cfg: Any) -> nn.Module:
    """Build what ``MODEL.FOCAL_RETINA.NORMALIZER`` describes.

    Raises:
        ValueError: an unknown mode, or values that the normalizer refuses.
    """
    node = cfg.MODEL.FOCAL_RETINA.NORMALIZER
    normalizers: dict[str, Callable[[], nn.Module]] = {
        "batch": BatchNormalizer,
        "ema": lambda: EmaNormalizer(initial=node.INITIAL, momentum=node.MOMENTUM),
        "image": ImageNormalizer,
    }
    if node.MODE not in normalizers:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.NORMALIZER.MODE is {node.MODE!r}: "
            f"choose one of {', '.join(normalizers)}"
        )
    return normalizers[node.MODE]()
