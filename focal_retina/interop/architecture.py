"""Variants of RetinaNet with a ResNet, as far as they differ in their tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

# Parameters of a module
CONV = ("weight",)
CONV_BIAS = AFFINE = ("weight", "bias")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")

# Residual blocks a stage, of a depth
BLOCKS = {
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

    @property
    def has_bottlenecks(self) -> bool:
        return self.depth >= 50

    def blocks(self) -> Iterator[tuple[int, int, int, bool]]:
        """Residual blocks: stage (2 to 5), index, its convolutions, whether it has a shortcut."""
        for stage, count in enumerate(BLOCKS[self.depth], start=2):
            for block in range(count):
                has_shortcut = block == 0 and (self.has_bottlenecks or stage > 2)
                yield stage, block, 3 if self.has_bottlenecks else 2, has_shortcut

    def last_block(self, stage: int) -> int:
        return BLOCKS[self.depth][stage - 2] - 1

    def subnet_modules(self, index: int) -> tuple[int, int | None]:
        """Positions of convolution ``index`` and of its norm in Detectron2's subnet."""
        return (3 * index, 3 * index + 1) if self.head_norm else (2 * index, None)

    def fpn_parameters(self) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Of an FPN convolution, and of its norm."""
        if not self.fpn_norm:
            return CONV_BIAS, None
        return CONV, BATCH_NORM if self.fpn_norm == "BN" else AFFINE
