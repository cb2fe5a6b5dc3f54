from .anchor_labeling import AnchorLabeler
from .anchors import paper_anchors
from .backbones import EfficientNetLite0
from .head import DENSE_HEAD_REGISTRY, DenseHead, FocalRetinaNetHead, build_dense_head
from .meta_arch import FocalRetinaNet
from .postprocess import DensePostprocessor
