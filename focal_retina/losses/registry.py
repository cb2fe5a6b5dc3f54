"""From config to modules: the only place of ``losses`` that chooses by name."""

from collections.abc import Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from .normalizer import BatchNormalizer, EmaNormalizer, ImageNormalizer

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = (
    """Classification losses; the contract is in :mod:`focal_retina.losses`."""
)

_NORMALIZERS: dict[str, Any] = {
    "batch": BatchNormalizer,
    "ema": EmaNormalizer,
    "image": ImageNormalizer,
}


def build_cls_loss(cfg: Any, class_counts: Sequence[int] | None = None) -> nn.Module:
    """Build the loss that ``MODEL.FOCAL_RETINA.CLS_LOSS.NAME`` names.

    A class with a ``from_config(cfg, class_counts)`` classmethod is built with the keyword
    arguments that it returns, any other class with none.

    Args:
        cfg: Detectron2's config with the nodes of focal_retina.
        class_counts: objects of each of the K classes in the training set; only
            ``CLS_LOSS.CLASS_ALPHA: auto`` needs them.

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
    mode = cfg.MODEL.FOCAL_RETINA.NORMALIZER.MODE
    if mode not in _NORMALIZERS:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.NORMALIZER.MODE is {mode!r}, not one of {', '.join(_NORMALIZERS)}"
        )
    normalizer_class = _NORMALIZERS[mode]
    return normalizer_class(**normalizer_class.from_config(cfg))
