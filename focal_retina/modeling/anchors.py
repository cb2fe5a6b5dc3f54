"""Anchor generators: the paper's, and those of torchvision, Detectron and ODTK. These round or
shift each anchor, which no setting of Detectron2's does. Aspect ratios vary fastest, as there.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)
from torch import Tensor


def paper_anchors(strides: Sequence[int]) -> DefaultAnchorGenerator:
    """The anchors of paper section 4: sides of 4 strides times 2^0, 2^(1/3) and 2^(2/3), ratios
    1:2, 1:1 and 2:1. On P3 to P7 these are 32 to 813 pixels."""
    return DefaultAnchorGenerator(
        sizes=[[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in strides],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=list(strides),
    )


class _AdjustedAnchorGenerator(DefaultAnchorGenerator):
    """:class:`DefaultAnchorGenerator` with each level's cell anchors adjusted."""

    def _calculate_anchors(
        self, sizes: list[list[float]], aspect_ratios: list[list[float]]
    ) -> BufferList:
        cells = super()._calculate_anchors(sizes, aspect_ratios)
        levels = zip(aspect_ratios, sizes, strict=True)
        ratios = [torch.tensor(x).repeat(len(own)) for x, own in levels]
        return BufferList(map(self._adjust, cells, self.strides, ratios))

    def _adjust(self, cell: Tensor, stride: int, ratios: Tensor) -> Tensor:
        """Of ``cell`` (A, 4), Detectron2's anchors around 0; ``ratios`` (A,), height by width."""
        raise NotImplementedError


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(_AdjustedAnchorGenerator):
    """As ``torchvision.models.detection.anchor_utils.AnchorGenerator``.

    Corners are rounded to whole pixels before they are placed. A level's stride is the padded
    image's size divided by the feature map's, rounded down: if that size is not a multiple of 128,
    the anchors of P6 and P7 are less than 64 and 128 pixels apart.
    """

    def _adjust(self, cell: Tensor, stride: int, ratios: Tensor) -> Tensor:
        return cell.round()

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        image_size = [length * self.strides[0] for length in grid_sizes[0]]
        anchors = []
        for size, cell in zip(grid_sizes, self.cell_anchors, strict=True):
            steps = [image // grid for image, grid in zip(image_size, size, strict=True)]
            y, x = (
                (torch.arange(n, device=cell.device) + self.offset) * step
                for n, step in zip(size, steps, strict=True)
            )
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
            anchors.append((shifts.view(-1, 1, 4) + cell).view(-1, 4))
        return anchors


@ANCHOR_GENERATOR_REGISTRY.register()
class DetectronAnchorGenerator(_AdjustedAnchorGenerator):
    """As Detectron's ``generate_anchors``: the sides of a cell of one stride are rounded to whole
    pixels, then scaled to the anchor's size. Its centres are ``MODEL.ANCHOR_GENERATOR.OFFSET`` 0.5.

    In Detectron a box includes its last pixel; here, as in Detectron2, that is its edge.
    """

    def _adjust(self, cell: Tensor, stride: int, ratios: Tensor) -> Tensor:
        width = (stride / ratios.sqrt()).round()
        height = (width * ratios).round()
        scale = ((cell[:, 2] - cell[:, 0]) * (cell[:, 3] - cell[:, 1])).sqrt() / stride
        corner = torch.stack((width, height), dim=1) * scale[:, None] / 2
        return torch.cat((-corner, corner), dim=1)


@ANCHOR_GENERATOR_REGISTRY.register()
class OdtkAnchorGenerator(_AdjustedAnchorGenerator):
    """As ODTK's ``generate_anchors``: shifted by half a stride, and a pixel wider and higher: ODTK
    includes the last pixel when it encodes and decodes boxes."""

    def _adjust(self, cell: Tensor, stride: int, ratios: Tensor) -> Tensor:
        return cell + stride / 2 + torch.tensor([0.0, 0.0, 1.0, 1.0])
