"""ODTK's ``Model`` (NVIDIA/retinanet-examples) with one ResNet."""

from dataclasses import dataclass, replace

from .adapter import Adapter, Data, Tensors, check_count, inner, of_modules, resnet_keys
from .architecture import Architecture
from .spec import IMAGENET_RGB, STRIDES, AnchorSpec, LossSpec, ModelSpec

_BACKBONE = "backbones.ResNet{depth}FPN"
KEYS = of_modules(
    {
        **resnet_keys(f"{_BACKBONE}.features"),
        "backbone.fpn_lateral{i}": f"{_BACKBONE}.lateral{{i}}",
        "backbone.fpn_output{i}": f"{_BACKBONE}.smooth{{i}}",
        "backbone.top_block.p{i}": f"{_BACKBONE}.pyramid{{i}}",
        # An nn.Sequential of four convolutions, a ReLU after each, and the output
        **{f"head.cls_subnet.{i}": f"cls_head.{2 * i}" for i in range(4)},
        "head.cls_score": "cls_head.8",
        **{f"head.bbox_subnet.{i}": f"box_head.{2 * i}" for i in range(4)},
        "head.bbox_pred": "box_head.8",
    }
)


@dataclass(frozen=True, kw_only=True)
class OdtkAdapter(Adapter):
    def unwrap(self, data: Data, spec: ModelSpec) -> tuple[Data, ModelSpec]:
        if "angles" in data:
            raise ValueError("it detects rotated boxes, which RetinaNet of Detectron2 does not")
        check_count("classes", data.get("classes"), spec.num_classes, "--num-classes")
        anchors = spec.anchors
        if "ratios" in data and "scales" in data:
            sizes = tuple(tuple(scale * stride for scale in data["scales"]) for stride in STRIDES)
            anchors = replace(anchors, sizes=sizes, ratios=tuple(data["ratios"]))
            stated = spec.anchors.per_position
            check_count("anchors a position", anchors.per_position, stated, "--num-anchors")
        return inner(data, "state_dict"), replace(spec, anchors=anchors)

    def wrap(self, tensors: Tensors, spec: ModelSpec, architecture: Architecture) -> Data:
        return {
            "backbone": [f"ResNet{architecture.depth}FPN"],
            "classes": spec.num_classes,
            "state_dict": tensors,
            "ratios": list(spec.anchors.ratios),
            "scales": [size / STRIDES[0] for size in spec.anchors.sizes[0]],
        }


ODTK = OdtkAdapter(
    name="odtk",
    keys=KEYS,
    spec=ModelSpec(
        pixels=IMAGENET_RGB,
        anchors=AnchorSpec("OdtkAnchorGenerator"),
        losses=LossSpec(beta=0.11),
    ),
    has_fixed_mean=True,
    num_convs=4,
    spare={
        f"backbones.ResNet{depth}FPN.features.fc.": "the ImageNet classifier"
        for depth in (18, 34, 50, 101, 152)
    },
)
# And before: 0.2.1 changed the anchors
ODTK_0_2_0 = replace(
    ODTK,
    name="odtk-0.2.0",
    spec=replace(ODTK.spec, anchors=AnchorSpec("DetectronAnchorGenerator", offset=0.5)),
)
