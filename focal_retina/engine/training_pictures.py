"""What a training works on, as pictures for TensorBoard, every ``VIS_PERIOD`` iterations: the first
image of the batch, in the size and augmentation that the network sees; and a sheet of such images.
A training goes the same way with and without pictures. Shapes: R anchors of all levels, M objects.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn

from ..drawing import Outline, draw_outlines, save_sheet
from ..modeling import FocalRetinaNet

_MAX_ANCHORS = 16  # of a kind; more hide the image
_MAX_ANCHORS_OF_OBJECT = 6
_MAX_DETECTIONS = 20  # as many as Detectron2 draws
_MAX_IMAGES, _COLUMNS, _SHEET_SIDE = 12, 4, 480  # of a sheet; pixels of an image's longer side
_MIN_SIDE = 640  # pixels of a picture's longer side; a smaller image is enlarged
_BLUE, _ORANGE, _GRAY, _WHITE = "#00b7ff", "#ff7a1a", "#9fb6d9", "#ffffff"
_OBJECT_COLORS = ("#ffb000", "#00b7ff", "#ff4f9a", "#2bd96b", "#a57bff", "#e8e337", "#00d5c3")


class TrainingPictures(HookBase):
    """Puts :func:`draw_training_pictures`, of the model as the iteration left it, into the event
    storage, before the writers. ``model`` stands without DistributedDataParallel round it;
    ``input_format`` is the channel order of its images."""

    def __init__(self, model: Any, *, period: int, input_format: str = "BGR"):
        self._model, self._period, self._input_format = model, period, input_format
        self._batch: list[dict[str, Any]] = []
        self._model.register_forward_pre_hook(self._keep_batch)

    def _keep_batch(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if model.training:
            self._batch = inputs[0][:1]

    @torch.no_grad()
    def after_step(self) -> None:
        # At resume, the batch of the iteration before is gone.
        if self.trainer.iter % self._period or not self._batch:
            return
        model, batch = self._model, self._batch
        model.eval()
        images = model.preprocess_image(batch)
        predictions = model.dense_predictions(images.tensor)
        model.train()
        (detections,) = model.postprocessor(*predictions, images.image_sizes)
        gt = batch[0]["instances"].to(model.device)
        labels, _, positives, owners, _ = model.label(predictions.anchors, batch)
        lowest_positive_band = model.anchor_labeler.iou_labels.index(1)
        positive_iou = model.anchor_labeler.iou_thresholds[lowest_positive_band - 1]
        image = convert_image_to_rgb(batch[0]["image"].permute(1, 2, 0), self._input_format)
        labeled = Boxes.cat(predictions.anchors), labels[0], positives, owners
        pictures = draw_training_pictures(image, gt, *labeled, detections, positive_iou)
        for name, picture in pictures.items():
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))


def draw_training_pictures(
    image: np.ndarray,
    gt: Instances,
    anchors: Boxes,
    labels: Tensor,
    positives: Tensor,
    owners: Tensor,
    detections: Instances,
    positive_iou: float,
) -> dict[str, np.ndarray]:
    """Draw an (H, W, 3) RGB image's anchors by label, its objects (dotted) with their anchors, and
    its detections, highest score first: pictures by title, uint8 (H', W', 3), RGB. ``labels`` of
    the R anchors, the indices of the ``positives`` and those of their objects, the ``owners``, are
    :meth:`FocalRetinaNet.label`'s; positives with an IoU below ``positive_iou`` were promoted."""
    image = np.asarray(image)
    draw = partial(draw_outlines, image, longer_side=max(_MIN_SIDE, *image.shape[:2]))
    objects = [Outline(box, _WHITE, line_style=":") for box in gt.gt_boxes.tensor]
    iou = matched_pairwise_iou(anchors[positives], gt.gt_boxes[owners])
    kinds = {
        "ignored (gray)": ((labels == -1).nonzero()[:, 0], _GRAY),
        "positive (blue)": (positives[iou >= positive_iou], _BLUE),
        f"promoted below IoU {positive_iou:g} (orange)": (positives[iou < positive_iou], _ORANGE),
    }
    by_label = []
    for idxs, color in kinds.values():
        by_label += [Outline(x, color) for x in anchors.tensor[_sample(idxs, _MAX_ANCHORS)]]
    counts = "\n".join(f"{len(idxs)} {kind}" for kind, (idxs, _) in kinds.items())
    matches = _matches(gt, anchors.tensor[positives], owners)
    caption = f"{len(positives)} anchors of {len(gt)} objects (dotted)"
    top = detections[:_MAX_DETECTIONS]
    return {
        "anchors by label": draw([*by_label, *objects], f"{counts}\nof {len(anchors)} anchors"),
        "objects and their anchors": draw(matches, caption),
        "top detections": draw(
            [*objects, *_judged(top, gt)],
            f"{len(top)} best of {len(detections)}\nright at IoU .5 (blue)\nwrong (orange)",
        ),
    }


@torch.no_grad()
def draw_training_images(
    model: FocalRetinaNet,
    batches: Iterable[list[dict[str, Any]]],
    input_format: str,
    class_names: Sequence[str],
    out_png: Path,
) -> None:
    """Draw the first images of a training loader's batches, as augmented: each object (dotted) with
    some of its positive anchors. The model's backbone is of no use afterwards."""
    model.eval().backbone.to("meta")  # only the sizes of its feature maps are asked for
    pictures = []
    for sample in itertools.islice(itertools.chain.from_iterable(batches), _MAX_IMAGES):
        features = model.features(model.preprocess_image([sample]).tensor.to("meta"))
        anchors = model.anchors([torch.empty_like(x, device="cpu") for x in features])
        gt = sample["instances"]
        _, _, anchor_idxs, owners, _ = model.label(anchors, [sample])
        positives = Boxes.cat(anchors).tensor[anchor_idxs]
        outlines = _matches(gt, positives, owners, class_names)
        image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), input_format)
        title = "{2}, {1} × {0}".format(*image.shape[:2], Path(sample["file_name"]).name)
        caption = f"{title}\nobjects: {len(gt)}, positive anchors: {len(positives)}"
        pictures.append(draw_outlines(image, outlines, caption, longer_side=_SHEET_SIDE))
    title = "Training images, augmented: objects (dotted), their class, and their anchors"
    save_sheet(pictures, title, out_png, columns=_COLUMNS, longer_side=_SHEET_SIDE)


def _sample(idxs: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of them, evenly spread: over the levels and over the image."""
    count = len(idxs)
    return idxs[torch.linspace(0, count - 1, min(limit, count)).round().long()]


def _matches(
    gt: Instances, positives: Tensor, owners: Tensor, class_names: Sequence[str] = ()
) -> list[Outline]:
    """Each object with its anchors, in a colour of its own."""
    outlines = []
    for i, (box, label) in enumerate(zip(gt.gt_boxes.tensor, gt.gt_classes.tolist(), strict=True)):
        color = _OBJECT_COLORS[i % len(_OBJECT_COLORS)]
        idxs = (owners == i).nonzero()[:, 0]
        name = class_names[label] if class_names else f"class {label}"
        outlines += [Outline(x, color) for x in positives[_sample(idxs, _MAX_ANCHORS_OF_OBJECT)]]
        outlines.append(Outline(box, color, f"{name}: {len(idxs)}", line_style=":"))
    return outlines


def _judged(detections: Instances, gt: Instances) -> list[Outline]:
    """Detections by whether they overlap an object of their class by half."""
    iou = pairwise_iou(detections.pred_boxes, gt.gt_boxes)
    same_class = detections.pred_classes[:, None] == gt.gt_classes[None]
    is_right = (same_class & (iou >= 0.5)).any(dim=1)
    fields = detections.pred_boxes, detections.pred_classes.tolist(), detections.scores, is_right
    return [
        Outline(box, _BLUE if right else _ORANGE, f"{label} {score:.2f}")
        for box, label, score, right in zip(*fields, strict=True)
    ]
