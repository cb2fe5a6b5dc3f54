"""Detectron2's own names, by way of which all others are converted."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .adapter import Adapter, Data, Tensors, inner
from .architecture import Architecture
from .spec import CAFFE_BGR, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Detectron2Adapter(Adapter):
    """A subnet is an ``nn.Sequential`` of convolution, norm where there is one, and ReLU."""

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        keys = list(keys)
        step = 3 if any(re.search(r"_subnet\.1\.", key) for key in keys) else 2

        def count(match: re.Match) -> str:
            conv, position = divmod(int(match[1]), step)
            return f"_subnet.{conv}." + ("norm." if position else "")

        return {key: re.sub(r"_subnet\.(\d+)\.", count, key) for key in keys}

    def to_key(self, name: str, architecture: Architecture) -> str | None:
        step = 3 if architecture.head_norm else 2

        def position(match: re.Match) -> str:
            return f"_subnet.{step * int(match[1]) + bool(match[2])}."

        return re.sub(r"_subnet\.(\d+)\.(norm\.)?", position, name)

    def unwrap(self, data: Data, spec: ModelSpec) -> tuple[Data, ModelSpec]:
        class_rows = data.get("class_rows", spec.class_rows)
        return inner(data, "model"), replace(spec, class_rows=class_rows)

    def wrap(self, tensors: Tensors, spec: ModelSpec, architecture: Architecture) -> Data:
        data = {"model": tensors, "__author__": "focal_retina", "matching_heuristics": False}
        return data | ({"class_rows": spec.class_rows} if spec.class_rows else {})


DETECTRON2 = Detectron2Adapter(
    name="detectron2",
    keys={},  # see from_keys and to_key
    spec=ModelSpec(pixels=CAFFE_BGR, stride_in_1x1=True),
    is_configurable=True,
    has_bias_before_norm=True,
    head_norms=("", "GN"),
    fpn_norms=("", "GN", "BN"),
    spare={
        "pixel_mean": "in the config",
        "pixel_std": "in the config",
        "anchor_generator.": "computed from the config",
        "loss_normalizer.": "of the training alone",
    },
)
