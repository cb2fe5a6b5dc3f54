"""Backbone and head each in channels_last or in NCHW memory, in fp32: a training step, and
inference of one image."""

from collections.abc import Iterator, Sequence
from itertools import cycle, product

import torch
from torch import nn

from focal_retina.config_file import get_config_file
from focal_retina.engine.trainer import build_optimizer
from focal_retina.modeling.inference import inference_copy

from .inference import detect
from .inputs import R50, Size, make_batch, make_cfg, make_detector
from .timing import Case
from .train import train_step

NETWORKS = {
    "EfficientNet-Lite0 + FPN-64": get_config_file("finetune/efficientnet_lite0.yaml"),
    "R50-FPN": R50,
}
SIZES = (Size(4, 288, 384, 6), Size(2, 480, 640, 80))  # of each network; one size is for both
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def cases(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The four combinations, channels_last everywhere first."""
    for (name, config), size in zip(NETWORKS.items(), cycle(sizes), strict=False):
        cfg, batch = make_cfg(size, device, config=config), make_batch(size)
        detections, steps = {}, {}
        for formats in product(FORMATS, repeat=2):
            model = make_detector(cfg, size)
            copy = in_formats(inference_copy(model), *formats)
            detections[" → ".join(formats)] = detect(copy, batch[:1])
            optimizer = build_optimizer(cfg, in_formats(model, *formats))
            steps[" → ".join(formats)] = train_step(model, optimizer, batch)
        yield f"inference, backbone → head, {name}, {size._replace(images=1).title}", detections
        yield f"train step, backbone → head, {name}, {size.title}", steps


def in_formats(model: nn.Module, backbone: str, head: str) -> nn.Module:
    """Lay out the weights of both parts, and convert what goes into them: a convolution runs in
    channels_last if its weight or its input has that."""
    model.backbone.to(memory_format=FORMATS[backbone]).register_forward_pre_hook(
        lambda _, args: (args[0].contiguous(memory_format=FORMATS[backbone]),)
    )
    model.head.to(memory_format=FORMATS[head])
    model.head_memory_format = FORMATS[head]
    return model
