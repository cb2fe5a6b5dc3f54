"""What the subjects work on, the same at every run: random anchors, objects and images, and
detectors of random weights."""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from focal_retina.engine import load_config
from focal_retina.modeling.anchors import paper_anchors

R50 = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
OBJECTS_PER_IMAGE = 8  # COCO has 7.3 on average


class Size(NamedTuple):
    """Of a batch: images of one size, and classes."""

    images: int
    height: int
    width: int
    classes: int

    @property
    def title(self) -> str:
        return f"{self.images} × {self.height} × {self.width} px, K = {self.classes}"


def make_anchors(image_size: tuple[int, int], device: torch.device) -> list[Boxes]:
    """The anchors of Detectron2's RetinaNet on P3…P7: 9 a cell (paper, section 4)."""
    strides = [8, 16, 32, 64, 128]
    generator = paper_anchors(strides)
    cells = [[-(-side // stride) for side in image_size] for stride in strides]
    return generator.to(device)([torch.empty(1, 1, *hw, device=device) for hw in cells])


def make_gt(objects: int, image_size: tuple[int, int], classes: int, seed: int = 0) -> Instances:
    """Objects of 10 to 300 px (log-uniform), of varied shape, anywhere inside the image."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 * 30 ** torch.rand(objects, 1, generator=generator)
    stretch = torch.exp(0.4 * torch.randn(objects, 1, generator=generator))
    room = torch.tensor([image_size[::-1]])
    sides = torch.cat([scale * stretch, scale / stretch], dim=1).minimum(room)
    corners = torch.rand(objects, 2, generator=generator) * (room - sides)
    return Instances(
        image_size,
        gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)),
        gt_classes=torch.randint(classes, (objects,), generator=generator),
    )


def make_batch(size: Size) -> list[dict]:
    """What Detectron2's mapper would make, with 8 objects an image."""
    hw = size.height, size.width
    generator = torch.Generator().manual_seed(0)
    shape = size.images, 3, *hw
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    gt = [make_gt(OBJECTS_PER_IMAGE, hw, size.classes, seed=i) for i in range(size.images)]
    return [{"image": x, "instances": y} for x, y in zip(images, gt, strict=True)]


def make_cfg(
    size: Size, device: torch.device, *, meta_arch: str = "FocalRetinaNet", config: str = R50
) -> CfgNode:
    """R50-FPN of Detectron2's zoo or another config, without weights from a file."""
    opts = ["MODEL.META_ARCHITECTURE", meta_arch, "MODEL.DEVICE", device.type, "MODEL.WEIGHTS", ""]
    opts += ["MODEL.RETINANET.NUM_CLASSES", size.classes]
    # A random network must not diverge on random images.
    return load_config(config, [*opts, "SOLVER.BASE_LR", 1e-6])


def make_detector(cfg: CfgNode, size: Size) -> nn.Module:
    """A detector of which about 1 score in 1,500 is above the threshold of .05, as after training:
    there is something to decode and to suppress."""
    torch.manual_seed(0)
    model = build_model(cfg)
    spread_outputs(model, make_batch(size), bias=-5.5, logits=0.8, deltas=0.2)
    return model


@torch.no_grad()
def spread_outputs(
    model: nn.Module, batch: list[dict], *, bias: float, logits: float, deltas: float
) -> None:
    """Scale the head's last layers, such that logits are ``bias`` ± ``logits`` and deltas 0 ±
    ``deltas`` on the finest level: an untrained head says the same everywhere, or saturates."""
    features = model.eval().backbone(model.preprocess_image(batch).tensor)
    outputs = model.head([features[name] for name in model.head_in_features])
    layers = model.head.cls_score, model.head.bbox_pred
    wanted = (bias, logits), (0.0, deltas)
    for layer, levels, (center, spread) in zip(layers, outputs, wanted, strict=True):
        layer.weight.mul_(spread / levels[0].std())
        layer.bias.fill_(center)
