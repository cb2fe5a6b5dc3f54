"""Weights to and from other libraries, and the parts of their models that Detectron2 lacks.

Importing it registers those parts: three anchor generators and a backbone builder.
"""

from .anchors import DetectronAnchorGenerator, OdtkAnchorGenerator, TorchvisionAnchorGenerator
from .backbone import build_resnet_fpn_backbone_with_top_block

__all__ = [
    "DetectronAnchorGenerator",
    "OdtkAnchorGenerator",
    "TorchvisionAnchorGenerator",
    "build_resnet_fpn_backbone_with_top_block",
]
