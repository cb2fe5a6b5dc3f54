from .coco import check_num_classes, register_coco_json, register_from_spec
from .mapper import CrowdKeepingMapper
from .shapes import register_shapes
from .shapes_config import ShapesConfig

__all__ = [
    "CrowdKeepingMapper",
    "ShapesConfig",
    "check_num_classes",
    "register_coco_json",
    "register_from_spec",
    "register_shapes",
]
