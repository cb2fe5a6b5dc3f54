from .classes import check_num_classes
from .coco import register_coco_json, register_from_spec
from .images import CorruptImageError, build_corrupt_image_guard, limit_pixels, read_image
from .loader import TrainLoader, build_train_loader, prepare_data_worker
from .mapper import DetectionMapper, build_test_mapper, build_train_mapper
from .shapes import ShapesConfig, register_shapes
