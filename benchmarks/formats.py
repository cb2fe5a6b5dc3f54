"""Backbone and head each in channels_last or in NCHW memory, in fp32: a training step, and
inference of one image."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from focal_retina.config_file import get_config_file
from focal_retina.engine.optimizer import build_optimizer
from focal_retina.modeling.inference import inference_copy

from .detectors import R50, make_cfg, make_detector
from .inference import detect
from .inputs import Size, make_batch
from .timing import Case, Staged
from .train import train_step

NETWORKS = {
    "EfficientNet-Lite0 + FPN-64": get_config_file("finetune/efficientnet_lite0.yaml"),
    "R50-FPN": R50,
}
SIZES = (Size(4, 288, 384, 6), Size(2, 480, 640, 80))  # of each network; one size is for both
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The four combinations, today's (channels_last everywhere) first."""
    for (name, config), size in zip(NETWORKS.items(), itertools.cycle(sizes), strict=False):
        batch, one = make_batch(size), size._replace(images=1)
        steps, detections = {}, {}
        for formats in itertools.product(FORMATS, repeat=2):
            label = " → ".join(formats)
            steps[label] = _step(config, size, device, batch, formats)
            detections[label] = _inference(config, one, device, formats)
        yield f"backbone → head of a train step, {name}, {size.title}", steps
        yield f"backbone → head of inference, {name}, {one.title}", detections


def _step(
    config: str, size: Size, device: torch.device, batch: list[dict], formats: tuple[str, str]
) -> Staged:
    cfg = make_cfg(size, device, config=config)
    model = make_detector(cfg, size)
    set_formats(model, *formats)
    return train_step(model, build_optimizer(cfg, model), lambda: batch)


def _inference(config: str, size: Size, device: torch.device, formats: tuple[str, str]) -> Staged:
    model = inference_copy(make_detector(make_cfg(size, device, config=config), size))
    set_formats(model, *formats)
    return detect(model, make_batch(size))


def set_formats(model: nn.Module, backbone: str, head: str) -> None:
    """Lay out the weights of both parts, and convert what goes into them: a convolution runs in
    channels_last if its weight or its input has that."""
    of_backbone, of_head = FORMATS[backbone], FORMATS[head]
    model.backbone.to(memory_format=of_backbone)
    model.head.to(memory_format=of_head)

    def convert_image(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0].contiguous(memory_format=of_backbone),)

    def convert_features(_: nn.Module, args: object, features: dict) -> dict:
        return {name: x.contiguous(memory_format=of_head) for name, x in features.items()}

    model.backbone.register_forward_pre_hook(convert_image)
    model.backbone.register_forward_hook(convert_features)
