"""What a RetinaNet's weights mean, and the weights do not tell.

Shapes: K classes, A anchors a position = sizes x aspect ratios, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7


@dataclass(frozen=True)
class Pixels:
    """How pixels enter the first convolution: channels in ``order``, (value - mean) / std.

    Attributes:
        order: "RGB" | "BGR".
        mean, std: per channel in that order, for values of 0 to 255.
    """

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def in_order(self, order: str) -> "Pixels":
        step = 1 if order == self.order else -1
        return Pixels(order, self.mean[::step], self.std[::step])

    def adapt(self, weight: Tensor, target: "Pixels") -> Tensor:
        """First convolution's weight (C, 3, H, W) for pixels as ``target`` has them.

        The output is the same if the means are the same colour. A difference of means could not be
        made up for by a bias, as the padding is 0 whatever the mean.
        """
        if target.order != self.order:
            weight = weight.flip(1)
        source = self.in_order(target.order)
        scale = torch.tensor(target.std) / torch.tensor(source.std)
        return weight * scale.to(weight.dtype).view(1, 3, 1, 1)


@dataclass(frozen=True)
class AnchorSettings:
    """``MODEL.ANCHOR_GENERATOR``: ``sizes`` per level; ``ratios`` are height by width."""

    generator: str
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    offset: float

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
        return [
            cell + self.offset * stride
            for cell, stride in zip(generator.cell_anchors, STRIDES, strict=True)
        ]

    def distance(self, other: "AnchorSettings") -> float:
        """Largest difference of a coordinate of an anchor, in pixels."""
        pairs = zip(self.first_boxes(), other.first_boxes(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)


@dataclass(frozen=True)
class Structure:
    """Everything that a model needs to run weights and that is not in them.

    Attributes:
        num_classes: K.
        stride_in_1x1: a bottleneck's stride is in its first convolution, else in the 3x3 one.
        p6_from: "res5" (C5) | "p5".
        p7_relu: whether P7 sees P6 after a ReLU.
        box_weights: what the four box deltas are multiplied by in training.
    """

    num_classes: int
    anchors: AnchorSettings
    pixels: Pixels
    stride_in_1x1: bool
    p6_from: str
    p7_relu: bool
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Structure":
        """
        Raises:
            ValueError: the model is no RetinaNet on P3 to P7 of a ResNet.
        """
        generator, retinanet = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RETINANET
        top_block = cfg.MODEL.FOCAL_RETINA.TOP_BLOCK
        known = {
            "build_retinanet_resnet_fpn_backbone": ("res5", True),
            "build_resnet_fpn_backbone_with_top_block": (top_block.IN_FEATURE, top_block.RELU),
        }
        if cfg.MODEL.BACKBONE.NAME not in known:
            raise ValueError(
                f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}; weights can be converted "
                f"with {', '.join(known)}"
            )
        if len(generator.ASPECT_RATIOS) != 1:
            raise ValueError("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS differ between levels")
        sizes = [tuple(map(float, level)) for level in generator.SIZES]
        if len(sizes) == 1:
            sizes *= len(STRIDES)
        if len(sizes) != len(STRIDES):
            raise ValueError(f"MODEL.ANCHOR_GENERATOR.SIZES is for {len(sizes)} levels, not 5")
        p6_from, p7_relu = known[cfg.MODEL.BACKBONE.NAME]
        return cls(
            num_classes=retinanet.NUM_CLASSES,
            anchors=AnchorSettings(
                generator=generator.NAME,
                sizes=tuple(sizes),
                ratios=tuple(map(float, generator.ASPECT_RATIOS[0])),
                offset=generator.OFFSET,
            ),
            pixels=Pixels(
                cfg.INPUT.FORMAT,
                tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
                tuple(map(float, cfg.MODEL.PIXEL_STD)),
            ),
            stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
            p6_from=p6_from,
            p7_relu=p7_relu,
            box_weights=tuple(map(float, retinanet.BBOX_REG_WEIGHTS)),
        )

    def config(self) -> dict[str, Any]:
        """The keys of a config of Detectron2 that say the same, as nested dicts."""
        top_block = {"IN_FEATURE": self.p6_from, "RELU": self.p7_relu}
        is_standard = self.p6_from == "res5" and self.p7_relu
        name = "retinanet_resnet_fpn_backbone"
        name = name if is_standard else "resnet_fpn_backbone_with_top_block"
        model = {
            "META_ARCHITECTURE": "FocalRetinaNet",
            "PIXEL_MEAN": list(self.pixels.mean),
            "PIXEL_STD": list(self.pixels.std),
            "BACKBONE": {"NAME": f"build_{name}"},
            "RESNETS": {
                "STRIDE_IN_1X1": self.stride_in_1x1,
                "OUT_FEATURES": ["res3", "res4", "res5"],
            },
            "FPN": {"IN_FEATURES": ["res3", "res4", "res5"]},
            "ANCHOR_GENERATOR": {
                "NAME": self.anchors.generator,
                "SIZES": _nested_lists(self.anchors.sizes),
                "ASPECT_RATIOS": [list(self.anchors.ratios)],
                "OFFSET": self.anchors.offset,
            },
            "RETINANET": {
                "NUM_CLASSES": self.num_classes,
                "BBOX_REG_WEIGHTS": list(self.box_weights),
                "IOU_THRESHOLDS": [0.4, 0.5],
                "IOU_LABELS": [0, -1, 1],
            },
        }
        if not is_standard:
            model["FOCAL_RETINA"] = {"TOP_BLOCK": top_block}
        return {"VERSION": 2, "MODEL": model, "INPUT": {"FORMAT": self.pixels.order}}


def _nested_lists(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(row) for row in rows]
