from .coco import check_num_classes, register_coco_json, register_from_spec
from .loader import TrainLoader, build_train_loader, prepare_data_worker
from .mapper import TrainMapper, build_train_mapper
from .shapes import register_shapes
from .shapes_scene import ShapesConfig

__all__ = [
    "ShapesConfig",
    "TrainLoader",
    "TrainMapper",
    "build_train_loader",
    "build_train_mapper",
    "check_num_classes",
    "prepare_data_worker",
    "register_coco_json",
    "register_from_spec",
    "register_shapes",
]
