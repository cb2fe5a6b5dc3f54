"""mmdetection's ``RetinaNet`` with ``ResNet``, ``FPN`` and ``RetinaHead`` (2.0 to 3.3)."""

from dataclasses import dataclass, replace

from .adapter import Adapter, Data, Tensors, check_count, inner, of_modules, resnet_keys
from .architecture import Architecture
from .spec import CAFFE_BGR, IMAGENET_RGB, ModelSpec

_FPN = {
    **{f"backbone.fpn_lateral{i + 3}": f"neck.lateral_convs.{i}" for i in range(3)},
    **{f"backbone.fpn_output{i + 3}": f"neck.fpn_convs.{i}" for i in range(3)},
}
KEYS = of_modules(
    {
        **resnet_keys("backbone"),
        **{f"{ours}": f"{theirs}.conv" for ours, theirs in _FPN.items()},
        **{f"{ours}.norm": f"{theirs}.{{fpn_norm}}" for ours, theirs in _FPN.items()},
        "backbone.top_block.p6": "neck.fpn_convs.3.conv",
        "backbone.top_block.p7": "neck.fpn_convs.4.conv",
        "head.cls_subnet.{i}": "bbox_head.cls_convs.{i}.conv",
        "head.cls_subnet.{i}.norm": "bbox_head.cls_convs.{i}.gn",
        "head.cls_score": "bbox_head.retina_cls",
        "head.bbox_subnet.{i}": "bbox_head.reg_convs.{i}.conv",
        "head.bbox_subnet.{i}.norm": "bbox_head.reg_convs.{i}.gn",
        "head.bbox_pred": "bbox_head.retina_reg",
    }
)


@dataclass(frozen=True, kw_only=True)
class MmdetectionAdapter(Adapter):
    def to_key(self, name: str, architecture: Architecture) -> str | None:
        # There the FPN's norm follows P6 and P7 too, for which Detectron2 has no place.
        top_biases = ("backbone.top_block.p6.bias", "backbone.top_block.p7.bias")
        if architecture.fpn_norm and name in top_biases:
            return None
        return super().to_key(name, architecture)

    def unwrap(self, data: Data, spec: ModelSpec) -> tuple[Data, ModelSpec]:
        meta = data.get("meta") or {}
        dataset = meta.get("dataset_meta") or meta  # 3.x or 2.x
        classes = dataset.get("CLASSES") or dataset.get("classes")
        if classes:
            check_count("classes", len(classes), spec.num_classes, "--num-classes")
        return inner(data, "state_dict"), spec

    def wrap(self, tensors: Tensors, spec: ModelSpec, architecture: Architecture) -> Data:
        return {"meta": {}, "state_dict": tensors}


MMDET = MmdetectionAdapter(
    name="mmdet",
    keys=KEYS,
    spec=ModelSpec(pixels=IMAGENET_RGB, p7_relu=False),
    sizes_vary_fastest=True,
    head_norms=("", "GN"),
    fpn_norms=("", "BN", "GN"),
)
MMDET_CAFFE = replace(
    MMDET,
    name="mmdet-caffe",
    spec=replace(MMDET.spec, pixels=CAFFE_BGR, stride_in_1x1=True),
)
