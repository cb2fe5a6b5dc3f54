"""Images to detections, beside Detectron2's RetinaNet and torchvision's."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from focal_retina.modeling.inference import inference_copy

from .detectors import make_ours, make_stock, make_torchvision
from .inputs import Size, make_batch
from .timing import Candidate, Case, Staged, precisions

SIZES = (Size(1, 480, 640, 80),)


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours in bf16 and fp32, folded, and the peers in fp32.

    torchvision's v2 has group norm in its head and, untrained, no scores above its threshold.
    """
    for size in sizes:
        stock, batch = make_stock(size, device), make_batch(size)
        ours = make_ours(stock, size, device)
        candidates: dict[str, Candidate] = {
            f"ours, {name}": detect(inference_copy(ours, name), batch)
            for name in precisions(device)
        }
        candidates["Detectron2, fp32"] = detect(stock, batch)
        peer = make_torchvision(size, device).eval()
        images = [x["image"].to(device).float() / 255 for x in batch]
        candidates["torchvision v2, fp32"] = _staged(
            peer, images, ("transform", "forward"), "postprocess_detections"
        )
        yield f"inference, {size.title}", candidates


def detect(model: nn.Module, batch: list[dict]) -> Staged:
    """Detections by FocalRetinaNet or Detectron2's RetinaNet."""
    postprocessing = "postprocessor" if hasattr(model, "postprocessor") else "forward_inference"
    return _staged(model.eval(), batch, ("", "preprocess_image"), postprocessing)


def _staged(model: nn.Module, inputs: list, data: tuple[str, str], postprocessing: str) -> Staged:
    owner, attribute = data
    stages = [
        ("data", model.get_submodule(owner), attribute),
        ("backbone", model.backbone, "forward"),
        ("head", model.head, "forward"),
        ("post-processing", model, postprocessing),
    ]
    return Staged(torch.inference_mode()(lambda: model(inputs)), stages)
