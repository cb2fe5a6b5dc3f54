"""focal_retina: RetinaNet with the focal loss (Lin et al., ICCV 2017) as a Detectron2 plugin.

Importing the package registers ``FocalRetinaNet`` in Detectron2's ``META_ARCH_REGISTRY``, the dense
head in ``DENSE_HEAD_REGISTRY``, the classification losses in ``CLS_LOSS_REGISTRY``, and backbones
and anchor generators in Detectron2's registries.
"""

from . import detectron2_import as _detectron2_import  # noqa: F401 - before all others
from .config import add_focal_retina_config
from .config_file import get_config_file, merge_config_file
from .data import register_shapes
from .losses import CLS_LOSS_REGISTRY, build_cls_loss
from .modeling import DENSE_HEAD_REGISTRY, FocalRetinaNet, FocalRetinaNetHead
from .version import __version__

register_shapes()

__all__ = [
    "CLS_LOSS_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "FocalRetinaNet",
    "FocalRetinaNetHead",
    "__version__",
    "add_focal_retina_config",
    "build_cls_loss",
    "get_config_file",
    "merge_config_file",
]
