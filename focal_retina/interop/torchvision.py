"""``torchvision.models.detection.RetinaNet`` with ``resnet_fpn_backbone``."""

import re
from dataclasses import dataclass, replace

from .adapter import Adapter, Data, inner, of_modules, resnet_keys
from .spec import IMAGENET_RGB, AnchorSpec, LossSpec, ModelSpec

_FPN = {
    **{f"backbone.fpn_lateral{i + 3}": f"backbone.fpn.inner_blocks.{i}" for i in range(3)},
    **{f"backbone.fpn_output{i + 3}": f"backbone.fpn.layer_blocks.{i}" for i in range(3)},
}
_CLASSIFICATION, _REGRESSION = "head.classification_head", "head.regression_head"
KEYS = of_modules(
    {
        **resnet_keys("backbone.body"),
        **{f"{ours}": f"{theirs}.0" for ours, theirs in _FPN.items()},
        **{f"{ours}.norm": f"{theirs}.1" for ours, theirs in _FPN.items()},
        "backbone.top_block.p{i}": "backbone.fpn.extra_blocks.p{i}",
        "head.cls_subnet.{i}": f"{_CLASSIFICATION}.conv.{{i}}.0",
        "head.cls_subnet.{i}.norm": f"{_CLASSIFICATION}.conv.{{i}}.1",
        "head.cls_score": f"{_CLASSIFICATION}.cls_logits",
        "head.bbox_subnet.{i}": f"{_REGRESSION}.conv.{{i}}.0",
        "head.bbox_subnet.{i}.norm": f"{_REGRESSION}.conv.{{i}}.1",
        "head.bbox_pred": f"{_REGRESSION}.bbox_reg",
    }
)


@dataclass(frozen=True, kw_only=True)
class TorchvisionAdapter(Adapter):
    def unwrap(self, data: Data, spec: ModelSpec) -> tuple[Data, ModelSpec]:
        tensors = inner(data, "model")  # its reference training script saves {"model": …}
        return {_todays_key(key): value for key, value in tensors.items()}, spec


def _todays_key(key: str) -> str:
    """Of a key of before torchvision 0.13, such as those of the published v1 weights, when a
    convolution and its ReLU became one module. torchvision renames them too."""
    key = re.sub(r"(_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
    old = re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.(weight|bias)", key)
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else key


TORCHVISION_V2 = TorchvisionAdapter(
    name="torchvision-v2",
    keys=KEYS,
    spec=ModelSpec(
        pixels=IMAGENET_RGB,
        anchors=AnchorSpec("TorchvisionAnchorGenerator"),
        losses=LossSpec("giou", normalizer="image"),
    ),
    whole_sizes=True,
    sizes_vary_fastest=True,
    has_background_row=True,
    head_norms=("GN",),
    fpn_norms=("", "BN", "GN"),
    num_convs=4,
)
TORCHVISION_V1 = replace(
    TORCHVISION_V2,
    name="torchvision-v1",
    spec=replace(TORCHVISION_V2.spec, losses=LossSpec(normalizer="image"), p6_from="p5"),
    head_norms=("",),
)
