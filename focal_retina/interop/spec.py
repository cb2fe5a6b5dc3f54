"""What a RetinaNet's weights mean and do not say themselves.

Shapes: K classes, A anchors a position = sizes x aspect ratios.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7
_BACKBONE = "build_retinanet_resnet_fpn_backbone"
_BACKBONE_WITH_TOP_BLOCK = "build_resnet_fpn_backbone_with_top_block"


@dataclass(frozen=True)
class PixelSpec:
    """How pixels enter the first convolution: channels in ``order``, (value - mean) / std.

    Attributes:
        order: "RGB" | "BGR".
        mean, std: per channel in that order, for values of 0 to 255.
    """

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def in_order(self, order: str) -> "PixelSpec":
        step = 1 if order == self.order else -1
        return PixelSpec(order, self.mean[::step], self.std[::step])

    def adapt(self, weight: Tensor, target: "PixelSpec") -> Tensor:
        """First convolution's weight (C, 3, H, W) for pixels as ``target`` has them.

        The output is the same if the means are the same colour. No bias can make up for another
        mean, because the padding is 0 whatever the mean.
        """
        if target.order != self.order:
            weight = weight.flip(1)
        scale = torch.tensor(target.std) / torch.tensor(self.in_order(target.order).std)
        return weight * scale.to(weight.dtype).view(1, 3, 1, 1)


IMAGENET_RGB = PixelSpec("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE_BGR = PixelSpec("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class AnchorSpec:
    """``MODEL.ANCHOR_GENERATOR``: ``sizes`` per level; ``ratios`` are height by width."""

    generator: str = "DefaultAnchorGenerator"
    offset: float = 0.0
    sizes: tuple[tuple[float, ...], ...] = ()
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_position(self) -> int:
        return len(self.sizes[0]) * len(self.ratios)

    def first_boxes(self) -> list[Tensor]:
        """Per level, the anchors (A, 4) of the first position."""
        generator = ANCHOR_GENERATOR_REGISTRY.get(self.generator)(
            sizes=[list(sizes) for sizes in self.sizes],
            aspect_ratios=[list(self.ratios)],
            strides=list(STRIDES),
            offset=self.offset,
        )
        cells = zip(generator.cell_anchors, STRIDES, strict=True)
        return [cell + self.offset * stride for cell, stride in cells]

    def distance(self, other: "AnchorSpec") -> float:
        """Largest difference of a coordinate of an anchor, in pixels."""
        pairs = zip(self.first_boxes(), other.first_boxes(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)


@dataclass(frozen=True)
class LossSpec:
    """How the weights were trained, so that training goes on as before.

    Attributes:
        box: ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``.
        beta: of "smooth_l1"; 0: L1.
        normalizer: ``MODEL.FOCAL_RETINA.NORMALIZER.MODE``.
    """

    box: str = "smooth_l1"
    beta: float = 0.0
    normalizer: str = "batch"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a model needs to run weights and that is not in them.

    Attributes:
        stride_in_1x1: a bottleneck's stride is in its first convolution, else in the 3x3 one.
        p6_from: "res5" (C5) | "p5".
        p7_relu: whether P7 sees P6 after a ReLU.
        box_weights: what the four box deltas are multiplied by in training.
        class_rows: an anchor's rows of the classification output in the file that the weights came
            from, where it departs from its library's habit; else None.
    """

    pixels: PixelSpec
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    losses: LossSpec = field(default_factory=LossSpec)
    num_classes: int = 80
    stride_in_1x1: bool = False
    p6_from: str = "res5"
    p7_relu: bool = True
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    class_rows: int | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ModelSpec":
        """
        Raises:
            ValueError: the model is no RetinaNet on P3 to P7 of a ResNet.
        """
        model, retinanet, options = cfg.MODEL, cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_RETINA
        known = {
            _BACKBONE: ("res5", True),
            _BACKBONE_WITH_TOP_BLOCK: (options.TOP_BLOCK.IN_FEATURE, options.TOP_BLOCK.RELU),
        }
        if model.BACKBONE.NAME not in known:
            raise ValueError(
                f"MODEL.BACKBONE.NAME is {model.BACKBONE.NAME!r}; weights can be converted with "
                + ", ".join(known)
            )
        p6_from, p7_relu = known[model.BACKBONE.NAME]
        return cls(
            pixels=PixelSpec(cfg.INPUT.FORMAT, _floats(model.PIXEL_MEAN), _floats(model.PIXEL_STD)),
            anchors=_anchors_of(model.ANCHOR_GENERATOR),
            losses=LossSpec(
                retinanet.BBOX_REG_LOSS_TYPE,
                retinanet.SMOOTH_L1_LOSS_BETA,
                options.NORMALIZER.MODE,
            ),
            num_classes=retinanet.NUM_CLASSES,
            stride_in_1x1=model.RESNETS.STRIDE_IN_1X1,
            p6_from=p6_from,
            p7_relu=p7_relu,
            box_weights=_floats(retinanet.BBOX_REG_WEIGHTS),
        )

    def to_config(self) -> dict[str, Any]:
        """The keys of a config of Detectron2 that say the same, as nested dicts."""
        is_standard = self.p6_from == "res5" and self.p7_relu
        levels = ["res3", "res4", "res5"]
        options: dict[str, Any] = {"NORMALIZER": {"MODE": self.losses.normalizer}}
        if not is_standard:
            options["TOP_BLOCK"] = {"IN_FEATURE": self.p6_from, "RELU": self.p7_relu}
        model = {
            "META_ARCHITECTURE": "FocalRetinaNet",
            "PIXEL_MEAN": list(self.pixels.mean),
            "PIXEL_STD": list(self.pixels.std),
            "BACKBONE": {"NAME": _BACKBONE if is_standard else _BACKBONE_WITH_TOP_BLOCK},
            "RESNETS": {"STRIDE_IN_1X1": self.stride_in_1x1, "OUT_FEATURES": levels},
            "FPN": {"IN_FEATURES": levels},
            "ANCHOR_GENERATOR": {
                "NAME": self.anchors.generator,
                "SIZES": [list(sizes) for sizes in self.anchors.sizes],
                "ASPECT_RATIOS": [list(self.anchors.ratios)],
                "OFFSET": self.anchors.offset,
            },
            "RETINANET": {
                "NUM_CLASSES": self.num_classes,
                "BBOX_REG_WEIGHTS": list(self.box_weights),
                "BBOX_REG_LOSS_TYPE": self.losses.box,
                "SMOOTH_L1_LOSS_BETA": self.losses.beta,
                "IOU_THRESHOLDS": [0.4, 0.5],
                "IOU_LABELS": [0, -1, 1],
            },
            "FOCAL_RETINA": options,
        }
        return {"VERSION": 2, "MODEL": model, "INPUT": {"FORMAT": self.pixels.order}}


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _anchors_of(node: CfgNode) -> AnchorSpec:
    if len(node.ASPECT_RATIOS) != 1:
        raise ValueError("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS differ between levels")
    sizes = [_floats(level) for level in node.SIZES]
    sizes = sizes * len(STRIDES) if len(sizes) == 1 else sizes
    if len(sizes) != len(STRIDES):
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.SIZES is for {len(sizes)} levels, not 5")
    return AnchorSpec(node.NAME, node.OFFSET, tuple(sizes), _floats(node.ASPECT_RATIOS[0]))
