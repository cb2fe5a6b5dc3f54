"""Run a convolutional subnet only where its outputs are wanted.

In training, box deltas are needed at positive anchors alone: about 1 cell of 100. Their receptive
fields, cut out of the feature maps of all images and levels as square patches, make one small batch
for the subnet, with the same outputs and gradients as whole maps to rounding.

N images, C channels, S cells of all levels in an image, P wanted cells, B patches of E x E cells,
of which the inner T x T are outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# T: most objects' positive cells on one level fit into a square of this side.
PATCH_OUTPUTS = 4
# Cutting out, masking and gathering cost, too: patches must spare half of the convolutions.
MAX_SHARE_OF_DENSE = 0.5


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy ``x`` without waiting until a GPU is done with what was queued before."""
    if device.type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def can_run_on_patches(layers: Sequence[nn.Module]) -> bool:
    """Whether the layers are 3x3 convolutions of stride 1 and ReLUs: each output depends on the
    cells next to it, and on nothing like the statistics of a whole map."""
    return all(
        type(layer) is nn.ReLU
        or (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            and (layer.dilation, layer.padding_mode, layer.groups) == ((1, 1), "zeros", 1)
            and getattr(layer, "norm", None) is getattr(layer, "activation", None) is None
        )
        for layer in layers
    )


def run_on_patches(
    layers: Sequence[nn.Module],
    features: Sequence[Tensor],
    image_idxs: Tensor,
    cell_idxs: Tensor,
    groups: Tensor,
) -> Tensor | None:
    """Outputs of ``nn.Sequential(*layers)`` at some cells of some feature maps.

    Args:
        features: per level (N, C, H, W).
        image_idxs, cell_idxs: (P,) int64, the image of each wanted cell, and the cell in [0, S),
            counted row by row and level after level.
        groups: (P,) int64. Cells of one image, level and group are taken for neighbours (such as
            the positives of one object), which only decides how patches are laid.

    Returns:
        (P, C_out), or None where whole maps are needed, or cheaper, so many cells are wanted.
    """
    if not can_run_on_patches(layers):
        return None
    depth = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    cells = _Cells(features, image_idxs, cell_idxs)
    patch_of_cell, corners = _lay_patches(cells, groups)
    convolved = len(corners) * sum((PATCH_OUTPUTS + 2 * i) ** 2 for i in range(depth))
    if convolved > MAX_SHARE_OF_DENSE * depth * cells.number:
        return None

    x, inside = _cut_patches(features, cells, corners, margin=depth)
    for layer in layers:
        if not isinstance(layer, nn.Conv2d):
            x = layer(x)
            continue
        # Without padding, the patch loses its outermost cells. A cell outside the image is zero to
        # every layer, as padding would have it.
        inside = inside[..., 1:-1, 1:-1]
        x = F.conv2d(x, layer.weight, layer.bias) * inside
    top, left = corners[patch_of_cell, 2:].unbind(1)
    return x[patch_of_cell, :, cells.y - top, cells.x - left]


class _Cells:
    """Where the wanted cells are: ``image``, ``level``, ``y``, ``x``, each int64 (P,)."""

    def __init__(self, features: Sequence[Tensor], image_idxs: Tensor, cell_idxs: Tensor):
        sizes = torch.tensor([x.shape[-2:] for x in features])
        self.sizes = to_device(sizes, cell_idxs.device)
        counts = self.sizes.prod(dim=1)
        self.first = counts.cumsum(0) - counts  # of each level
        self.per_image = sum(x.shape[-2] * x.shape[-1] for x in features)  # S
        self.number = len(features[0]) * self.per_image
        self.image = image_idxs
        self.level = torch.bucketize(cell_idxs, self.first, right=True) - 1
        in_level = cell_idxs - self.first[self.level]
        width = self.sizes[self.level, 1]
        self.y, self.x = in_level // width, in_level % width


def _lay_patches(cells: _Cells, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Cover the cells with squares of T x T, beginning at the top left of each group. The patch of
    each cell (P,), and of each patch its image, level, top and left (B, 4)."""
    num_levels = len(cells.sizes)
    # As one number each: sorting numbers is faster than sorting rows.
    key = ((cells.image * num_levels + cells.level) << 32) + groups
    key, group = torch.unique(key, return_inverse=True)
    top, left = (
        position.new_zeros(len(key)).scatter_reduce_(0, group, position, "amin", include_self=False)
        for position in (cells.y, cells.x)
    )
    row = (cells.y - top[group]) // PATCH_OUTPUTS
    column = (cells.x - left[group]) // PATCH_OUTPUTS
    patch, patch_of_cell = torch.unique((group << 32) + (row << 16) + column, return_inverse=True)
    group, row, column = patch >> 32, (patch >> 16) & 0xFFFF, patch & 0xFFFF
    image_level = key[group] >> 32
    top, left = top[group] + PATCH_OUTPUTS * row, left[group] + PATCH_OUTPUTS * column
    corners = image_level // num_levels, image_level % num_levels, top, left
    return patch_of_cell, torch.stack(corners, dim=1)


def _cut_patches(
    features: Sequence[Tensor], cells: _Cells, corners: Tensor, margin: int
) -> tuple[Tensor, Tensor]:
    """Patches (B, C, E, E), E = T + 2 margin, and whether a cell lies in its map (B, 1, E, E)."""
    image, level, top, left = corners[:, :, None, None].unbind(1)
    offsets = torch.arange(-margin, PATCH_OUTPUTS + margin, device=corners.device)
    y, x = top + offsets[:, None], left + offsets
    height, width = cells.sizes[level].unbind(-1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = image * cells.per_image + cells.first[level] + y * width + x

    rows = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
    # An embedding, because the gradient of plain indexing is slow on a CPU.
    patches = F.embedding(torch.where(inside, index, 0), rows.flatten(0, 1)) * inside[..., None]
    return patches.permute(0, 3, 1, 2), inside[:, None].to(patches.dtype)
