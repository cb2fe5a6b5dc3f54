"""The names that importing focal_retina adds to Detectron2's registries, and whether they are free.

Most are added by decorators, module by module: an import that came upon a taken name in its middle
would leave what it had added before.
"""

from __future__ import annotations

import inspect
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
)

__all__ = ["REGISTERED_NAMES", "check_names_are_free"]

REGISTERED_NAMES: list[tuple[Any, str, tuple[str, ...]]] = [
    (META_ARCH_REGISTRY, "META_ARCH_REGISTRY", ("FocalRetinaNet",)),
    (
        BACKBONE_REGISTRY,
        "BACKBONE_REGISTRY",
        (
            "build_efficientnet_lite_fpn_backbone",
            "build_resnet_fpn_backbone_with_top_block",
            "build_resnet_fpn_backbone_without_top_block",
        ),
    ),
    (
        ANCHOR_GENERATOR_REGISTRY,
        "ANCHOR_GENERATOR_REGISTRY",
        ("DetectronAnchorGenerator", "OdtkAnchorGenerator", "TorchvisionAnchorGenerator"),
    ),
    (
        DatasetCatalog,
        "DatasetCatalog",
        ("focal_shapes_train", "focal_shapes_val", "focal_shapes_test"),
    ),
]


def check_names_are_free() -> None:
    """Called before anything is registered.

    Raises:
        ImportError: a name is taken, by another plugin or by an earlier import of this package; the
            message says where.
    """
    for registry, label, names in REGISTERED_NAMES:
        for name in names:
            if name in registry:
                entry = registry[name] if registry is DatasetCatalog else registry.get(name)
                raise ImportError(
                    f"focal_retina registers {name!r} in Detectron2's {label}, but the name is "
                    f"taken by {_origin(entry)}. Nothing has been registered. Import only one of "
                    "the two in a process; if it is focal_retina both times, restart Python to "
                    "import it anew.",
                    name="focal_retina",
                )


def _origin(entry: Any) -> str:
    """Module and file of a registered class or function, or of what a partial calls."""
    target = inspect.unwrap(getattr(entry, "func", entry))
    try:
        file = inspect.getfile(target)
    except (TypeError, OSError):  # defined in a console
        file = "no file"
    return f"{getattr(target, '__module__', 'an unknown module')} ({file})"
