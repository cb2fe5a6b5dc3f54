"""Detectron2's own names, by way of which all others are converted."""

import re
from collections.abc import Iterable

from detectron2.config import CfgNode

from .adapter import Adapter


class Detectron2Adapter(Adapter):
    """A subnet is an ``nn.Sequential`` of convolution, norm where there is one, and ReLU."""

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        keys = list(keys)
        step = 3 if any("_subnet.1." in key for key in keys) else 2

        def count(match: re.Match) -> str:
            conv, position = divmod(int(match[1]), step)
            return f"_subnet.{conv}." + ("norm." if position else "")

        return {key: re.sub(r"_subnet\.(\d+)\.", count, key) for key in keys}

    def to_key(self, name: str, spec: CfgNode) -> str | None:
        step = 3 if spec.MODEL.RETINANET.NORM else 2
        position = lambda x: f"_subnet.{step * int(x[1]) + bool(x[2])}."  # noqa: E731
        return re.sub(r"_subnet\.(\d+)\.(norm\.)?", position, name)


DETECTRON2 = Detectron2Adapter(
    name="detectron2",
    keys={},  # see from_keys and to_key
    config={},
    place="model",
    beside={"__author__": "focal_retina", "matching_heuristics": False},
    # Of the config, computed from it, and of the training alone
    spare=r"pixel_mean|pixel_std|anchor_generator\..*|loss_normalizer\..*",
)
