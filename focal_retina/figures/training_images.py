"""Training images as the model sees them, with their objects and the anchors that learn them."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from detectron2.data.detection_utils import convert_image_to_rgb

from ..drawing import draw_outlines
from ..engine.training_pictures import match_outlines
from ..modeling import FocalRetinaNet
from .detections import save_sheet

_MAX_IMAGES = 12
_COLUMNS, _SIDE = 4, 480  # pixels of an image's longer side


@torch.no_grad()
def draw_training_images(
    model: FocalRetinaNet,
    batches: Iterable[list[dict[str, Any]]],
    input_format: str,
    class_names: Sequence[str],
    out_png: Path,
) -> None:
    """Draw the first images of a training loader's batches, as augmented: each object (dotted) with
    some of its positive anchors, in one colour. ``input_format``: the channels of ``image``."""
    model.eval().backbone.to("meta")  # only the sizes of its feature maps are asked for
    pictures = []
    for sample in islice(chain.from_iterable(batches), _MAX_IMAGES):
        padded = model.preprocess_image([sample]).tensor.to("meta")
        anchors = model.anchors([torch.empty_like(x, device="cpu") for x in model.features(padded)])
        gt = sample["instances"]
        labels, matched_idxs = (x[0] for x in model.anchor_labeler(anchors, [gt]))
        positives = ((labels >= 0) & (labels != model.num_classes)).nonzero()[:, 0]
        boxes = torch.cat([x.tensor for x in anchors])[positives]
        outlines = match_outlines(gt, boxes, matched_idxs[positives], class_names)
        image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), input_format)
        size = "{1} × {0}".format(*image.shape)
        counts = f"objects: {len(gt)}, positive anchors: {len(positives)}"
        caption = f"{Path(sample['file_name']).name}, {size}\n{counts}"
        pictures.append(draw_outlines(image, outlines, caption, longer_side=_SIDE))
    title = "Training images, augmented: objects (dotted), their class, and their anchors"
    save_sheet(pictures, title, out_png, columns=_COLUMNS, side=_SIDE)
