"""Anchors and ground truth in, one label and one matched object per anchor out.

The numbers are those of Detectron2's ``pairwise_iou`` + ``Matcher`` + ``RetinaNet.label_anchors``,
bit for bit, without their matrix of all anchors by all objects: the work goes block by block,
in buffers that stay in the cache, and leaves out objects that lie outside a block.

Shapes: N images, R anchors of all levels, S anchors of a block, B blocks, M objects of an image,
K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .patches import to_device

# Anchors and objects taken at once on a CPU: their product stays in the cache, and below the 32,768
# elements from which torch spreads an operator over threads. So small a piece gains little by that,
# and loses much where the cores are busy.
CPU_BLOCK = (4000, 8)
# Objects taken at once on an accelerator, of one image or of several, with all anchors.
ACCELERATOR_OBJECTS = 128

# The best anchors of an object are promoted where their IoU reaches this.
PROMOTION_FLOORS: dict[str, Callable[[float], float]] = {
    "none": lambda min_iou: float("inf"),
    "min_iou": lambda min_iou: min_iou,
    "any": lambda min_iou: 0.0,
}


class AnchorLabeler:
    """Assigns each anchor a class, background, or "ignore", by its IoU with the objects.

    An anchor belongs to the object that it overlaps most (the first of equals); the band of that
    IoU decides what it becomes. Then each object's best anchors, ties included, may be promoted to
    positive whatever their band; a promoted anchor keeps the object that *it* overlaps most.

    Unlike in Detectron2, an object without area (width or height ≤ 0), or one that overlaps no
    anchor, matches and promotes nothing (there, one such object makes every anchor positive).
    An image without objects to match is all background.

    Objects whose optional boolean field ``gt_is_crowd`` is set never match, just as if the mapper
    had dropped them, which is what Detectron2's does.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Sequence[float] = (0.4, 0.5),
        iou_labels: Sequence[int] = (0, -1, 1),
        promotion: str = "any",
        promotion_min_iou: float = 0.4,
        crowd_ioa_threshold: float | None = None,
    ):
        """
        Args:
            num_classes: K; also the label of background.
            iou_thresholds: ascending borders of the IoU bands; a band includes its lower border.
            iou_labels: what an anchor in each band becomes, one more than there are thresholds:
                0 background, -1 ignored, 1 positive (not in the lowest band, where an anchor may
                overlap nothing). The default is the paper's (section 4.1).
            promotion: which objects promote their best anchors: ``none`` (the paper says nothing
                of promotion), ``min_iou`` those whose best IoU is at least ``promotion_min_iou``
                (Detectron, 0.4), ``any`` all (Detectron2).
            promotion_min_iou: used by ``min_iou`` only.
            crowd_ioa_threshold: background anchors with at least this fraction of their area
                inside one crowd box become ignored. None: crowd boxes have no effect.

        Raises:
            ValueError: the bands, the promotion or the crowd threshold make no sense.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a detector needs at least 1 class")
        _check_bands(iou_thresholds, iou_labels)
        if promotion not in PROMOTION_FLOORS:
            raise ValueError(f"promotion is {promotion!r}; use one of {sorted(PROMOTION_FLOORS)}")
        if not 0 <= promotion_min_iou <= 1:
            raise ValueError(f"promotion_min_iou is {promotion_min_iou}; an IoU is in [0, 1]")
        if crowd_ioa_threshold is not None and not 0 < crowd_ioa_threshold <= 1:
            raise ValueError(
                f"crowd_ioa_threshold is {crowd_ioa_threshold}; use a fraction in (0, 1], or None"
            )
        self.num_classes = num_classes
        self.iou_thresholds = tuple(iou_thresholds)
        self.iou_labels = tuple(iou_labels)
        self.promotion_floor = PROMOTION_FLOORS[promotion](promotion_min_iou)
        self.crowd_ioa_threshold = crowd_ioa_threshold

    @torch.no_grad()
    def __call__(
        self, anchors: Sequence[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            anchors: a ``Boxes`` per level, R in sum, the same for all images.
            gt_instances: per image ``gt_boxes`` (M, 4), ``gt_classes`` (M,) and optionally
                ``gt_is_crowd`` (M,) bool, on the CPU or the anchors' device. Their values must have
                passed :func:`check_gt_instances`.

        Returns:
            labels, int64 (N, R): -1 ignored, 0…K-1 the class of a positive, K background.
            matched_idxs, int64 (N, R): the index of a positive's object in its image; 0 elsewhere.
        """
        anchors = list(anchors) or [Boxes(torch.empty(0, 4))]
        shape = len(gt_instances), sum(map(len, anchors))
        matched_idxs = torch.zeros(shape, dtype=torch.int64, device=anchors[0].device)
        labels = torch.full_like(matched_idxs, self.num_classes)
        if labels.numel() == 0 or not any(map(len, gt_instances)):
            return labels, matched_idxs
        pairs_of = _Blocks if anchors[0].device.type == "cpu" else _AllPairs
        pairs = pairs_of(_columns(Boxes.cat(anchors).tensor))
        pairs.match(gt_instances, self._kinds, self.promotion_floor, labels, matched_idxs)
        if self.crowd_ioa_threshold is not None and any(x.has("gt_is_crowd") for x in gt_instances):
            covered = pairs.highest_ioa(gt_instances) >= self.crowd_ioa_threshold
            labels.masked_fill_(covered & (labels == self.num_classes), -1)
        return labels, matched_idxs

    def _kinds(self, iou: Tensor) -> Tensor:
        """What anchors become by the band of their highest IoU: -1, 0 or 1, int8."""
        kinds = torch.full_like(iou, self.iou_labels[0], dtype=torch.int8)
        for threshold, label in zip(self.iou_thresholds, self.iou_labels[1:], strict=True):
            kinds.masked_fill_(iou >= threshold, label)
        return kinds


def check_gt_instances(
    gt_instances: Sequence[Instances], num_classes: int, image_names: Sequence[str] | None = None
) -> None:
    """Check the ground truth of a batch, best before it moves to the device.

    Args:
        gt_instances: per image ``gt_boxes`` (M, 4) and ``gt_classes`` (M,).
        num_classes: K.
        image_names: one per image; without them, the message gives the position in the batch.

    Raises:
        ValueError: a class outside 0…K-1 (Detectron2 silently takes K for background and -1 for
            "ignore"), or a box with NaN, infinite or absurdly large coordinates.
    """
    if not gt_instances:
        return
    # A NaN or infinite coordinate makes the area NaN or infinite, too: the areas check all four.
    areas = torch.cat([gt.gt_boxes.area() for gt in gt_instances])
    classes = torch.cat([gt.gt_classes for gt in gt_instances])
    if bool((areas.isfinite() & (classes >= 0) & (classes < num_classes)).all()):
        return
    names = image_names or [f"image {i} of the batch" for i in range(len(gt_instances))]
    for name, gt in zip(names, gt_instances, strict=True):
        for i, (box, label) in enumerate(zip(gt.gt_boxes, gt.gt_classes.tolist(), strict=True)):
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"{name}: object {i} has class {label}, but num_classes is {num_classes}, so "
                    f"classes are 0 to {num_classes - 1}. Correct the annotation, or set "
                    "MODEL.RETINANET.NUM_CLASSES to the number of classes of the data set."
                )
            if not Boxes(box[None]).area().isfinite():
                raise ValueError(
                    f"{name}: object {i} has the box {box.tolist()}, whose area is not a finite "
                    "float32. Correct or remove the annotation, or the transform that made the box."
                )


def _check_bands(thresholds: Sequence[float], labels: Sequence[int]) -> None:
    ascending = all(low <= high for low, high in pairwise(thresholds))
    if not thresholds or not thresholds[0] > 0 or not ascending:
        raise ValueError(f"iou_thresholds is {list(thresholds)}; give ascending positive numbers")
    bands = len(thresholds) + 1
    if len(labels) != bands or not set(labels) <= {-1, 0, 1}:
        raise ValueError(f"iou_labels is {list(labels)}; give -1, 0 or 1 to each of {bands} bands")
    if labels[0] == 1:
        raise ValueError(
            f"iou_labels is {list(labels)}; the lowest band holds anchors that overlap nothing, "
            "which can't be positive: begin with 0 or -1"
        )


class _Pairs:
    """All anchors, as ``columns`` (5, R), against the objects of each image."""

    def __init__(self, columns: Tensor):
        self.columns = columns

    def match(
        self,
        gt_instances: Sequence[Instances],
        kinds_of: Callable[[Tensor], Tensor],
        promotion_floor: float,
        labels: Tensor,
        matched: Tensor,
    ) -> None:
        """Write ``labels`` and ``matched``, both (N, R), in place."""
        raise NotImplementedError

    def highest_ioa(self, gt_instances: Sequence[Instances]) -> Tensor:
        """(N, R): the largest share of each anchor that lies in one crowd."""
        raise NotImplementedError


class _AllPairs(_Pairs):
    """For accelerators: all anchors, and the objects of several images, at once. No size depends on
    the device's data, so that nothing waits for it, and a CUDA graph can capture it."""

    def objects(self, gt_instances: Sequence[Instances], *, is_crowd: bool) -> Tensor:
        """(5, N, M), padded with empty boxes."""
        boxes = pad_sequence([_boxes(gt, is_crowd) for gt in gt_instances], batch_first=True)
        return _columns(to_device(boxes, self.columns.device))

    def images_at_once(self, objects: Tensor) -> list[slice]:
        step = max(ACCELERATOR_OBJECTS // objects.shape[2], 1)
        return [slice(i, i + step) for i in range(0, objects.shape[1], step)]

    def measures(self, objects: Tensor, measure: "_Measure") -> Iterator[tuple[int, Tensor]]:
        """The first of some of the objects (5, n, M) of n images, and their values (n, m, R), which
        the next step overwrites."""
        _, num_images, num_objects = objects.shape
        at_once = num_images * min(num_objects, ACCELERATOR_OBJECTS)
        workspace = self.columns.new_empty(3, at_once * self.columns.shape[1])
        for start in range(0, num_objects, ACCELERATOR_OBJECTS):
            rows = objects[:, :, start : start + ACCELERATOR_OBJECTS].flatten(1)
            yield start, measure(rows, self.columns, workspace).unflatten(0, (num_images, -1))

    def match(
        self,
        gt_instances: Sequence[Instances],
        kinds_of: Callable[[Tensor], Tensor],
        promotion_floor: float,
        labels: Tensor,
        matched: Tensor,
    ) -> None:
        objects = self.objects(gt_instances, is_crowd=False)
        classes = pad_sequence([gt.gt_classes for gt in gt_instances], batch_first=True)
        classes = to_device(classes, self.columns.device)
        of_anchor = self.columns.new_zeros(matched.shape)
        promoted = torch.zeros_like(matched, dtype=torch.bool)
        for images in self.images_at_once(objects):
            own = objects[:, images]
            self.best_iou(
                own, promotion_floor, of_anchor[images], matched[images], promoted[images]
            )
        kinds = kinds_of(of_anchor).masked_fill_(promoted, 1)
        # Without objects to match, all is background, whatever the lowest band says.
        kinds.masked_fill_(objects[4].isinf().all(1, keepdim=True), 0)
        labels.masked_fill_(kinds == -1, -1)
        is_positive = kinds == 1
        torch.where(is_positive, classes.gather(1, matched), labels, out=labels)
        matched.mul_(is_positive)

    def best_iou(
        self, objects: Tensor, floor: float, of_anchor: Tensor, matched: Tensor, promoted: Tensor
    ) -> None:
        """Write, all (n, R), the highest IoU of each anchor, its object, and whether it is an
        object's highest, and ≥ ``floor``."""
        of_object = []
        for start, iou in self.measures(objects, _pairwise_iou):
            highest, first = iou.max(1)
            torch.where(highest > of_anchor, first + start, matched, out=matched)
            torch.maximum(of_anchor, highest, out=of_anchor)
            of_object.append(iou.amax(2))
        best = torch.cat(of_object, dim=1)
        best.masked_fill_((best <= 0) | (best < floor), torch.inf)
        again = [(0, iou)] if len(of_object) == 1 else self.measures(objects, _pairwise_iou)
        for start, iou in again:
            promoted |= (iou == best[:, start : start + iou.shape[1], None]).any(1)

    def highest_ioa(self, gt_instances: Sequence[Instances]) -> Tensor:
        objects = self.objects(gt_instances, is_crowd=True)
        highest = self.columns.new_zeros(objects.shape[1], self.columns.shape[1])
        for images in self.images_at_once(objects):
            for _, ioa in self.measures(objects[:, images], _pairwise_ioa):
                torch.maximum(highest[images], ioa.amax(1), out=highest[images])
        return highest


class _Blocks(_Pairs):
    """For a CPU: anchors cut into blocks, each against the objects that reach into it."""

    def __init__(self, columns: Tensor):
        super().__init__(columns)
        self.size, self.objects_at_once = CPU_BLOCK
        self.blocks = columns.split(self.size, dim=1)
        low = torch.stack([block[:2].amin(1) for block in self.blocks], dim=1)
        high = torch.stack([block[2:4].amax(1) for block in self.blocks], dim=1)
        self.hulls = torch.cat([low, high])
        self.workspace = columns.new_empty(3, self.size * self.objects_at_once)

    def match(
        self,
        gt_instances: Sequence[Instances],
        kinds_of: Callable[[Tensor], Tensor],
        promotion_floor: float,
        labels: Tensor,
        matched: Tensor,
    ) -> None:
        for gt, its_labels, its_matched in zip(gt_instances, labels, matched, strict=True):
            objects = _columns(_boxes(gt, is_crowd=False))
            if not objects[4].isfinite().any():
                continue
            anchor_iou, block_iou = self.best_iou(objects)
            promoted = self.attain(objects, block_iou, promotion_floor)
            kinds = kinds_of(anchor_iou).masked_fill_(promoted, 1)
            its_labels.masked_fill_(kinds == -1, -1)
            positives = (kinds == 1).nonzero()[:, 0]
            its_matched[positives] = self.argmax_iou(positives, objects)
            its_labels[positives] = gt.gt_classes[its_matched[positives]]

    def highest_ioa(self, gt_instances: Sequence[Instances]) -> Tensor:
        highest = self.columns.new_zeros(len(gt_instances), self.columns.shape[1])
        for gt, of_anchor in zip(gt_instances, highest, strict=True):
            objects = _columns(_boxes(gt, is_crowd=True))
            rows = of_anchor.split(self.size)
            for number, _, ioa in self.sweep(objects, self.near(objects), _pairwise_ioa):
                torch.maximum(rows[number], ioa.amax(0), out=rows[number])
        return highest

    def near(self, objects: Tensor) -> Tensor:
        """(B, M) bool: whether an object reaches into the hull of a block's anchors."""
        x1, y1, x2, y2 = self.hulls.unsqueeze(2)
        left, top, right, bottom, _ = objects
        return (left < x2) & (right > x1) & (top < y2) & (bottom > y1)

    def sweep(
        self, objects: Tensor, selected: Tensor, measure: "_Measure"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Evaluate ``measure`` on the selected pairs of a block and an object.

        Yields:
            the number of the block, the indices of some objects (m,), and their values (m, S),
            which the next step overwrites.
        """
        indices = selected.nonzero()[:, 1].split(selected.sum(1).tolist())
        for number, block in enumerate(self.blocks):
            for start in range(0, len(indices[number]), self.objects_at_once):
                chunk = indices[number][start : start + self.objects_at_once]
                yield number, chunk, measure(objects[:, chunk], block, self.workspace)

    def best_iou(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """The highest IoU of each anchor (R,), and of each object within each block (B, M)."""
        of_anchor = self.columns.new_zeros(self.columns.shape[1])
        of_object = self.columns.new_zeros(len(self.blocks), objects.shape[1])
        anchor_rows = of_anchor.split(self.size)
        for number, chunk, iou in self.sweep(objects, self.near(objects), _pairwise_iou):
            torch.maximum(anchor_rows[number], iou.amax(0), out=anchor_rows[number])
            of_object[number, chunk] = iou.amax(1)
        return of_anchor, of_object

    def attain(self, objects: Tensor, block_iou: Tensor, floor: float) -> Tensor:
        """(R,) bool: anchors whose IoU with an object is that object's highest, and ≥ ``floor``.

        Only the blocks with an object's highest IoU, by ``block_iou`` (B, M), are computed again.
        """
        highest = block_iou.amax(0)
        attained = torch.zeros_like(self.columns[0], dtype=torch.bool)
        rows = attained.split(self.size)
        winners = (block_iou == highest) & (highest > 0) & (highest >= floor)
        for number, chunk, iou in self.sweep(objects, winners, _pairwise_iou):
            # No difference is positive, so the greatest is 0 where one of the objects is attained.
            rows[number].logical_or_(iou.sub_(highest[chunk, None]).amax(0) == 0)
        return attained

    def argmax_iou(self, indices: Tensor, objects: Tensor) -> Tensor:
        """For the anchors at ``indices`` (P,), the object of highest IoU, the first of equals."""
        num_objects = objects.shape[1]
        order = torch.arange(num_objects, dtype=objects.dtype, device=objects.device)
        rows = max(1, self.workspace.shape[1] // num_objects)
        workspace = self.workspace.new_empty(3, rows * num_objects)
        best = []
        for chunk in indices.split(rows):
            iou = _pairwise_iou(self.columns[:, chunk], objects, workspace)
            # 0 at the highest, -1 elsewhere; then minus the position, or less. Plain arithmetic,
            # because max(dim=1) and argmax are slow on a CPU.
            below = iou.sub_(iou.amax(1, keepdim=True)).sign_()
            best.append(below.mul_(num_objects).sub_(order).amax(1))
        return torch.cat(best).neg_().long()


_Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


def _boxes(gt: Instances, is_crowd: bool) -> Tensor:
    """(M, 4): the crowds' boxes, or the others'; an empty box stands in for what is left out, since
    selecting would wait for a GPU."""
    boxes = gt.gt_boxes.tensor
    if not gt.has("gt_is_crowd"):
        return torch.zeros_like(boxes) if is_crowd else boxes
    return boxes.masked_fill((gt.gt_is_crowd != is_crowd)[:, None], 0)


def _columns(boxes: Tensor) -> Tensor:
    """Boxes (…, 4) to contiguous rows x1, y1, x2, y2, area (5, …).

    A box without area is given an infinite one, so that its IoU with anything is 0.
    """
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
    intersection, _ = _intersection(rows, columns, workspace)
    return intersection.div_(columns[4])


def _intersection(rows: Tensor, columns: Tensor, workspace: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection (m, S) of boxes (5, m) and (5, S), ≤ 0 where disjoint, and a spare buffer."""
    m, s = rows.shape[1], columns.shape[1]
    width, height, spare = workspace[:, : m * s].view(3, m, s)
    x1, y1, x2, y2, _ = rows.unsqueeze(2)
    other_x1, other_y1, other_x2, other_y2, _ = columns
    torch.minimum(x2, other_x2, out=width).sub_(torch.maximum(x1, other_x1, out=spare))
    torch.minimum(y2, other_y2, out=height).sub_(torch.maximum(y1, other_y1, out=spare))
    return width.clamp_(min=0).mul_(height), spare
