"""What ``tools/benchmark.py inference`` measures: images to detections, beside Detectron2's
RetinaNet and torchvision's."""

from collections.abc import Iterator

import torch
from torch import nn

from ..modeling.inference import inference_copy
from .detectors import make_batch, make_ours, make_stock, make_torchvision
from .loss import Size
from .stages import Stage, StagedCandidate
from .timing import Candidate, Case

DEFAULT_SIZE = Size(1, 480, 640, 80)


def comparison_cases(device: torch.device, size: Size = DEFAULT_SIZE) -> Iterator[Case]:
    """Ours in bf16 and fp32, folded, and the peers in fp32.

    torchvision's v2 has group norm in its head and, untrained, no scores above its threshold.

    Yields:
        a title and the candidates by name, ours first.
    """
    stock = make_stock(size, device)
    ours = make_ours(stock, size, device)
    batch = make_batch(size)
    candidates: dict[str, Candidate] = {
        f"ours, {precision}": _detectron2_model(inference_copy(ours, precision), batch)
        for precision in ("bf16", "fp32")
    }
    candidates["Detectron2, fp32"] = _detectron2_model(stock, batch, "forward_inference")
    candidates["torchvision v2, fp32"] = _torchvision_model(make_torchvision(size, device), batch)
    yield f"inference, {size.title}", candidates


def _detectron2_model(
    model: nn.Module, batch: list[dict], postprocessing: str = "postprocessor"
) -> StagedCandidate:
    @torch.inference_mode()
    def run() -> object:
        return model.eval()(batch)

    stages = [
        Stage("data", model, "preprocess_image"),
        Stage("backbone", model.backbone, "forward"),
        Stage("head", model.head, "forward"),
        Stage("post-processing", model, postprocessing),
    ]
    return StagedCandidate(run, stages)


def _torchvision_model(model: nn.Module, batch: list[dict]) -> StagedCandidate:
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run() -> object:
        return model.eval()([x["image"].to(device).float() / 255 for x in batch])

    stages = [
        Stage("data", model.transform, "forward"),
        Stage("backbone", model.backbone, "forward"),
        Stage("head", model.head, "forward"),
        Stage("post-processing", model, "postprocess_detections"),
    ]
    return StagedCandidate(run, stages)
