"""The detectors that benchmarks compare, with random weights."""

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from focal_retina.engine import load_config

from .inputs import Size, make_batch

R50 = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")


def make_cfg(
    size: Size, device: torch.device, *, meta_arch: str = "FocalRetinaNet", config: str = R50
) -> CfgNode:
    """R50-FPN of Detectron2's zoo or another config, without weights from a file."""
    options = {
        "MODEL.META_ARCHITECTURE": meta_arch,
        "MODEL.DEVICE": device.type,
        "MODEL.WEIGHTS": "",
        "MODEL.RETINANET.NUM_CLASSES": size.classes,
        "SOLVER.BASE_LR": 1e-6,  # a random network must not diverge on random images
    }
    return load_config(config, [x for pair in options.items() for x in pair])


def make_detector(cfg: CfgNode, size: Size) -> nn.Module:
    """A detector of which about 1 score in 1,500 is above the threshold of .05, as after training:
    there is something to decode and to suppress."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(make_batch(size)).tensor)
        logits, deltas = model.head([features[name] for name in model.head_in_features])
        for layer, levels, bias, spread in (
            (model.head.cls_score, logits, -5.5, 0.8),
            (model.head.bbox_pred, deltas, 0.0, 0.2),
        ):
            layer.weight.mul_(spread / levels[0].std())
            layer.bias.fill_(bias)
    return model


def make_stock(size: Size, device: torch.device) -> nn.Module:
    """Detectron2's RetinaNet."""
    return make_detector(make_cfg(size, device, meta_arch="RetinaNet"), size)


def make_ours(stock: nn.Module, size: Size, device: torch.device) -> nn.Module:
    """FocalRetinaNet with the weights of ``stock``, laid out as our trainer does."""
    model = build_model(make_cfg(size, device))
    model.load_state_dict(stock.state_dict())
    return model.to(memory_format=torch.channels_last)


def make_torchvision(size: Size, device: torch.device) -> nn.Module:
    """torchvision's RetinaNet (v2: group norm in the head), taking images in their own size."""
    short, long = sorted((size.height, size.width))
    return retinanet_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=size.classes,
        min_size=short,
        max_size=long,
    ).to(device)
