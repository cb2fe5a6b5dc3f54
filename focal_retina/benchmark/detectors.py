"""The detectors that benchmarks compare, and what they work on: random weights, random images."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from ..config import add_focal_retina_config
from ..config_file import merge_config_file
from .labeling import make_gt
from .loss import Size

OBJECTS_PER_IMAGE = 8  # COCO has 7.3 on average
ZOO_CONFIG = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def make_cfg(meta_architecture: str, size: Size, device: torch.device) -> CfgNode:
    """R50-FPN of Detectron2's zoo, without pretrained weights."""
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, get_config_file(ZOO_CONFIG))
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.DEVICE = device.type
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RETINANET.NUM_CLASSES = size.classes
    cfg.SOLVER.BASE_LR = 1e-6  # a random network must not diverge on random images
    return cfg


def make_stock(size: Size, device: torch.device) -> nn.Module:
    """Detectron2's RetinaNet, whose logits are spread like those of a trained one.

    About 1 score in 1,500 is above the threshold of .05, so that there is something to decode and
    to suppress.
    """
    torch.manual_seed(0)
    model = build_model(make_cfg("RetinaNet", size, device)).eval()
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(make_batch(size)).tensor)
        outputs = model.head([features[name] for name in model.head_in_features])
        for layer, levels, bias, spread in (
            (model.head.cls_score, outputs[0], -5.5, 0.8),
            (model.head.bbox_pred, outputs[1], 0.0, 0.2),
        ):
            layer.weight.mul_(spread / levels[0].std())
            layer.bias.fill_(bias)
    return model


def make_ours(stock: nn.Module, size: Size, device: torch.device) -> nn.Module:
    """FocalRetinaNet with the weights of ``stock``, laid out as our trainer does."""
    model = build_model(make_cfg("FocalRetinaNet", size, device))
    model.load_state_dict(stock.state_dict())
    return model.to(memory_format=torch.channels_last)


def make_torchvision(size: Size, device: torch.device) -> nn.Module:
    """torchvision's RetinaNet (v2: group norm in the head), taking images in their own size."""
    short, long = sorted((size.height, size.width))
    model = retinanet_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=size.classes,
        min_size=short,
        max_size=long,
    )
    return model.to(device)


def make_batch(size: Size) -> list[dict]:
    """What Detectron2's mapper would make, with 8 objects an image."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for image in range(size.images):
        instances = make_gt(OBJECTS_PER_IMAGE, (size.height, size.width), "cpu", seed=image)
        instances.gt_classes %= size.classes
        shape = 3, size.height, size.width
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        batch.append(
            {
                "image": pixels,
                "instances": instances,
                "height": size.height,
                "width": size.width,
            }
        )
    return batch
