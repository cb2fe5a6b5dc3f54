"""The IoU of all anchors with the objects of each image, in buffers of bounded size, and what each
anchor becomes by it: block by block on a CPU, many at once on an accelerator.

Boxes are columns x1, y1, x2, y2, area, see :func:`columns_of`. Shapes: N images, R anchors of all
levels, S anchors of a block, B blocks, M objects of an image, padded with empty boxes.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor

# Anchors and objects taken at once on a CPU: their product stays in the cache, and below the 32,768
# elements from which torch spreads an operator over threads. So small a piece gains little by that,
# and loses much where the cores are busy.
CPU_BLOCK = (4000, 8)
# Objects taken at once on an accelerator, of one image or of several, with all anchors.
ACCELERATOR_OBJECTS = 128

# Boxes (5, m) and (5, S), and a workspace (3, at least m * S), to (m, S) values in the workspace.
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
# The highest IoU of anchors to what they become by its band: -1, 0 or 1, int8.
Kinds = Callable[[Tensor], Tensor]


class AllPairs:
    """For accelerators: all anchors, and the objects of several images, at once. No size depends on
    the device's data, so that nothing waits for it, and a CUDA graph can capture it."""

    def __init__(self, anchors: Tensor):
        """anchors: (5, R)."""
        self.anchors = anchors

    def match(self, objects: Tensor, kinds_of: Kinds, floor: float) -> tuple[Tensor, Tensor]:
        """What anchors become, int8 (N, R), by their highest IoU with the ``objects`` (5, N, M): 1
        also where it is the highest of an object, and ≥ ``floor``; and the first object of that
        IoU, int64 (N, R), valid where anchors become 1."""
        parts = [self._best_iou(group, floor) for group in self._groups(objects)]
        iou, matched, promoted = map(torch.cat, zip(*parts, strict=True))
        return kinds_of(iou).masked_fill_(promoted, 1), matched

    def highest_ioa(self, objects: Tensor) -> Tensor:
        """(N, R): the largest share of each anchor that lies in one of the ``objects``."""
        sweeps = [self._sweep(group, _pairwise_ioa) for group in self._groups(objects)]
        return torch.cat([reduce(torch.maximum, (x.amax(1) for _, x in sweep)) for sweep in sweeps])

    def _groups(self, objects: Tensor) -> tuple[Tensor, ...]:
        """The objects (5, n, M) of some images each."""
        return objects.split(max(ACCELERATOR_OBJECTS // objects.shape[2], 1), dim=1)

    def _sweep(self, objects: Tensor, measure: Measure) -> Iterator[tuple[int, Tensor]]:
        """The first of some of the objects (5, n, M) of n images, and their values (n, m, R), which
        the next step overwrites."""
        _, num_images, num_objects = objects.shape
        at_once = num_images * min(num_objects, ACCELERATOR_OBJECTS)
        workspace = self.anchors.new_empty(3, at_once * self.anchors.shape[1])
        for start in range(0, num_objects, ACCELERATOR_OBJECTS):
            rows = objects[:, :, start : start + ACCELERATOR_OBJECTS].flatten(1)
            yield start, measure(rows, self.anchors, workspace).unflatten(0, (num_images, -1))

    def _best_iou(self, objects: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each anchor, (n, R): its highest IoU, the object, and whether it is promoted."""
        of_anchor = self.anchors.new_zeros(objects.shape[1], self.anchors.shape[1])
        matched = torch.zeros_like(of_anchor, dtype=torch.int64)
        promoted = torch.zeros_like(of_anchor, dtype=torch.bool)
        of_object = []
        for start, iou in self._sweep(objects, _pairwise_iou):
            highest, first = iou.max(1)
            torch.where(highest > of_anchor, first + start, matched, out=matched)
            torch.maximum(of_anchor, highest, out=of_anchor)
            of_object.append(iou.amax(2))
        best = torch.cat(of_object, dim=1)
        best.masked_fill_((best <= 0) | (best < floor), torch.inf)
        again = [(0, iou)] if len(of_object) == 1 else self._sweep(objects, _pairwise_iou)
        for start, iou in again:
            promoted |= (iou == best[:, start : start + iou.shape[1], None]).any(1)
        return of_anchor, matched, promoted


class Blocks:
    """For a CPU, with the interface of :class:`AllPairs`: anchors cut into blocks, each against the
    objects of an image that reach into it."""

    def __init__(self, anchors: Tensor):
        self.anchors = anchors
        self.size, self.objects_at_once = CPU_BLOCK
        self.blocks = anchors.split(self.size, dim=1)
        low = torch.stack([block[:2].amin(1) for block in self.blocks], dim=1)
        high = torch.stack([block[2:4].amax(1) for block in self.blocks], dim=1)
        self.hulls = torch.cat([low, high]).unsqueeze(2)
        self.workspace = anchors.new_empty(3, self.size * self.objects_at_once)

    def match(self, objects: Tensor, kinds_of: Kinds, floor: float) -> tuple[Tensor, Tensor]:
        kinds_of_images = []
        matched = torch.zeros(objects.shape[1], self.anchors.shape[1], dtype=torch.int64)
        for its_matched, its_objects in zip(matched, objects.unbind(1), strict=True):
            anchor_iou, block_iou = self._highest(its_objects, _pairwise_iou)
            promoted = self._attain(its_objects, block_iou, floor)
            kinds = kinds_of(anchor_iou).masked_fill_(promoted, 1)
            positives = (kinds == 1).nonzero()[:, 0]
            its_matched[positives] = self._argmax_iou(positives, its_objects)
            kinds_of_images.append(kinds)
        return torch.stack(kinds_of_images), matched

    def highest_ioa(self, objects: Tensor) -> Tensor:
        return torch.stack([self._highest(x, _pairwise_ioa)[0] for x in objects.unbind(1)])

    def _sweep(
        self, objects: Tensor, selected: Tensor, measure: Measure
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of the ``selected`` (B, M) blocks and objects (5, M), the number of a block, the indices
        of some objects (m,), and their values (m, S), which the next step overwrites."""
        indices = selected.nonzero()[:, 1].split(selected.sum(1).tolist())
        for number, block in enumerate(self.blocks):
            for start in range(0, len(indices[number]), self.objects_at_once):
                chunk = indices[number][start : start + self.objects_at_once]
                yield number, chunk, measure(objects[:, chunk], block, self.workspace)

    def _highest(self, objects: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        """The highest value of each anchor (R,), and of each object within each block (B, M)."""
        x1, y1, x2, y2 = self.hulls
        left, top, right, bottom, area = objects
        is_near = (left < x2) & (right > x1) & (top < y2) & (bottom > y1) & area.isfinite()
        of_anchor = self.anchors.new_zeros(self.anchors.shape[1])
        of_object = self.anchors.new_zeros(is_near.shape)
        rows = of_anchor.split(self.size)
        for number, chunk, values in self._sweep(objects, is_near, measure):
            torch.maximum(rows[number], values.amax(0), out=rows[number])
            of_object[number, chunk] = values.amax(1)
        return of_anchor, of_object

    def _attain(self, objects: Tensor, block_iou: Tensor, floor: float) -> Tensor:
        """(R,) bool: anchors whose IoU with an object is that object's highest, and ≥ ``floor``.
        Only blocks with an object's highest IoU, by ``block_iou`` (B, M), are computed again."""
        highest = block_iou.amax(0)
        attained = torch.zeros_like(self.anchors[0], dtype=torch.bool)
        rows = attained.split(self.size)
        winners = (block_iou == highest) & (highest > 0) & (highest >= floor)
        for number, chunk, iou in self._sweep(objects, winners, _pairwise_iou):
            # No difference is positive, so the greatest is 0 where one of the objects is attained.
            rows[number].logical_or_(iou.sub_(highest[chunk, None]).amax(0) == 0)
        return attained

    def _argmax_iou(self, indices: Tensor, objects: Tensor) -> Tensor:
        """For the anchors at ``indices`` (P,), the object of highest IoU, the first of equals."""
        num_objects = objects.shape[1]
        order = torch.arange(num_objects, dtype=objects.dtype)
        rows = max(1, self.workspace.shape[1] // num_objects)
        workspace = self.workspace.new_empty(3, rows * num_objects)
        best = []
        for chunk in indices.split(rows):
            iou = _pairwise_iou(self.anchors[:, chunk], objects, workspace)
            # 0 at the highest, -1 elsewhere; then minus the position, or less. Plain arithmetic,
            # because max(dim=1) and argmax are slow on a CPU.
            below = iou.sub_(iou.amax(1, keepdim=True)).sign_()
            best.append(below.mul_(num_objects).sub_(order).amax(1))
        return torch.cat(best).neg_().long()


def columns_of(boxes: Tensor) -> Tensor:
    """Boxes (…, 4) to contiguous rows x1, y1, x2, y2, area (5, …). The area of an empty box is
    infinite, so that its IoU with anything is 0."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    area = width * height
    area = torch.where((width > 0) & (area > 0), area, torch.inf)
    return torch.stack([x1, y1, x2, y2, area])


def _pairwise_iou(rows: Tensor, columns: Tensor, workspace: Tensor) -> Tensor:
    """IoU (m, S) of boxes (5, m) and (5, S), rounded as Detectron2's; ≤ 0 where disjoint."""
    intersection, spare = _intersection(rows, columns, workspace)
    union = torch.add(rows[4].unsqueeze(1), columns[4], out=spare).sub_(intersection)
    return intersection.div_(union)


def _pairwise_ioa(rows: Tensor, columns: Tensor, workspace: Tensor) -> Tensor:
    """Intersection over the area of the second box, (m, S); ≤ 0 where disjoint."""
    return _intersection(rows, columns, workspace)[0].div_(columns[4])


def _intersection(rows: Tensor, columns: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection (m, S) of boxes (5, m) and (5, S), ≤ 0 where disjoint, and a spare buffer."""
    m, s = rows.shape[1], columns.shape[1]
    width, height, spare = workspace[:, : m * s].view(3, m, s)
    x1, y1, x2, y2, _ = rows.unsqueeze(2)
    other_x1, other_y1, other_x2, other_y2, _ = columns
    torch.minimum(x2, other_x2, out=width).sub_(torch.maximum(x1, other_x1, out=spare))
    torch.minimum(y2, other_y2, out=height).sub_(torch.maximum(y1, other_y1, out=spare))
    return width.clamp_(min=0).mul_(height), spare
