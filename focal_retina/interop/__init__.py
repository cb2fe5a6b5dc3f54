"""Weights to and from other libraries, by way of Detectron2's names and order: a file a library."""

from .adapter import DETECTRON2
from .detectron import DETECTRON
from .mmdetection import MMDET, MMDET_CAFFE
from .odtk import ODTK, ODTK_0_2_0
from .torchvision import TORCHVISION_V1, TORCHVISION_V2

_OTHERS = TORCHVISION_V1, TORCHVISION_V2, MMDET, MMDET_CAFFE, DETECTRON, ODTK, ODTK_0_2_0
ADAPTERS = {adapter.name: adapter for adapter in (DETECTRON2, *_OTHERS)}
