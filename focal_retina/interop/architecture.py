"""Which tensors a RetinaNet with a ResNet has, read from the names of those in a file.

Names here are Detectron2's, but for the subnets: their convolutions are counted, and a norm is
named after its convolution, as in Detectron2's backbones (``head.cls_subnet.1.norm.weight``).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STEM = "backbone.bottom_up.stem.conv1"
OUTPUTS = {"head.cls_subnet": "head.cls_score", "head.bbox_subnet": "head.bbox_pred"}

_CONV = ("weight",)
_CONV_BIAS = _AFFINE = ("weight", "bias")
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")

# Residual blocks of the stages 2 to 5, of a depth
_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class Architecture:
    """What decides which tensors a RetinaNet has.

    Attributes:
        depth: of the ResNet.
        num_convs: convolutions of a subnet before its output.
        head_norm, fpn_norm: "" | "GN" (after each of those, and in the FPN) | "BN" (FPN only).
    """

    depth: int = 50
    num_convs: int = 4
    head_norm: str = ""
    fpn_norm: str = ""

    @classmethod
    def of(cls, names: Iterable[str]) -> "Architecture":
        """
        Raises:
            ValueError: the residual blocks are those of no known depth.
        """
        text = "\n".join(names)
        blocks = _count(r"\.res4\.(\d+)\.", text)
        has_bottlenecks = re.search(r"\.res\d\.\d+\.conv3\.", text) is not None
        for depth, counts in _BLOCKS.items():
            if counts[2] == blocks and (depth >= 50) == has_bottlenecks:
                break
        else:
            raise ValueError(
                f"its stage 4 has {blocks} residual blocks: a ResNet of {list(_BLOCKS)} layers has "
                f"{[counts[2] for counts in _BLOCKS.values()]}"
            )
        fpn_norm = "GN" if re.search(r"\.fpn_\w+\.norm\.", text) else ""
        return cls(
            depth=depth,
            num_convs=_count(r"_subnet\.(\d+)\.", text),
            head_norm="GN" if re.search(r"_subnet\.\d+\.norm\.", text) else "",
            fpn_norm="BN" if re.search(r"\.fpn_\w+\.norm\.running_", text) else fpn_norm,
        )

    @property
    def has_bottlenecks(self) -> bool:
        return self.depth >= 50

    def last_block(self, stage: int) -> int:
        return _BLOCKS[self.depth][stage - 2] - 1

    def names(self) -> list[str]:
        """Every tensor."""
        return [f"{name}.{part}" for name, parts in self._modules() for part in parts]

    def _modules(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in [STEM, *self._residual_convs()]:
            yield name, _CONV
            yield f"{name}.norm", _BATCH_NORM
        for stage in (3, 4, 5):
            for name in (f"backbone.fpn_lateral{stage}", f"backbone.fpn_output{stage}"):
                yield name, _CONV if self.fpn_norm else _CONV_BIAS
                if self.fpn_norm:
                    yield f"{name}.norm", _BATCH_NORM if self.fpn_norm == "BN" else _AFFINE
        yield "backbone.top_block.p6", _CONV_BIAS
        yield "backbone.top_block.p7", _CONV_BIAS
        for subnet, output in OUTPUTS.items():
            for i in range(self.num_convs):
                yield f"{subnet}.{i}", _CONV_BIAS
                if self.head_norm:
                    yield f"{subnet}.{i}.norm", _AFFINE
            yield output, _CONV_BIAS

    def _residual_convs(self) -> Iterator[str]:
        for stage, count in enumerate(_BLOCKS[self.depth], start=2):
            for block in range(count):
                has_shortcut = block == 0 and (self.has_bottlenecks or stage > 2)
                names = ["conv1", "conv2", "conv3"] if self.has_bottlenecks else ["conv1", "conv2"]
                for name in names + ["shortcut"] * has_shortcut:
                    yield f"backbone.bottom_up.res{stage}.{block}.{name}"


def _count(pattern: str, text: str) -> int:
    """One more than the highest number that the pattern finds."""
    return max(map(int, re.findall(pattern, text)), default=-1) + 1
