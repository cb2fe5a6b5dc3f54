"""Images to detections, beside Detectron2's RetinaNet and torchvision's."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from focal_retina.modeling.inference import inference_copy

from .inputs import Size, make_batch, make_ours, make_stock
from .timing import Candidate, Case, precisions

SIZES = (Size(1, 480, 640, 80),)


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours in bf16 and fp32, folded, and the peers in fp32."""
    for size in sizes:
        stock, batch = make_stock(size, device), make_batch(size)
        ours = make_ours(stock, size, device)
        candidates = {
            f"ours, {precision}": detect(inference_copy(ours, precision), batch)
            for precision in precisions(device)
        }
        candidates["Detectron2, fp32"] = detect(stock, batch)
        candidates["torchvision v2, fp32"] = _torchvision(size, device, batch)
        yield f"inference, {size.title}", candidates


def detect(model: torch.nn.Module, images: list) -> Candidate:
    return partial(torch.inference_mode()(model.eval()), images)


def _torchvision(size: Size, device: torch.device, batch: list[dict]) -> Candidate:
    """It takes images in their own size, has group norm in its head and, untrained, no scores above
    its threshold."""
    short, long = sorted((size.height, size.width))
    options = {"num_classes": size.classes, "min_size": short, "max_size": long}
    model = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, **options).to(device)
    return detect(model, [x["image"].to(device).float() / 255 for x in batch])
