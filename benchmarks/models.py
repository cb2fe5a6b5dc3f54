"""Whole models: a training step and inference beside Detectron2's and torchvision's RetinaNet, and
backbone and head each in channels_last or in NCHW memory."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, product

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim import Optimizer
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from focal_retina.config_file import get_config_file
from focal_retina.engine import Trainer
from focal_retina.engine.precision import prepare_for_training
from focal_retina.modeling.inference import inference_copy

from .inputs import R50, Size, make_batch, make_cfg, make_detector
from .timing import Candidate, Case, precisions

NETWORKS = {
    "EfficientNet-Lite0 + FPN-64": get_config_file("finetune/efficientnet_lite0.yaml"),
    "R50-FPN": R50,
}
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}


def train(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours in bf16 and fp32, and Detectron2's in fp32; on CUDA also Detectron2's with its AMP
    (fp16), and with channels_last and bf16, which its trainer does not offer."""
    peers = {"fp32": torch.float32}
    if device.type == "cuda":
        peers |= {"AMP": torch.float16, "channels_last + bf16": torch.bfloat16}
    for size in sizes:
        cfg, batch, candidates = make_cfg(size, device), make_batch(size), {}
        for name, dtype in precisions(device).items():
            _, model = make_pair(size, device)
            prepare_for_training(model, precision=name, device=device.type)
            step = train_step(model, Trainer.build_optimizer(cfg, model), batch, dtype)
            candidates[f"ours, {name}"] = step
        for name, dtype in peers.items():
            model, _ = make_pair(size, device)
            if "channels_last" in name:
                model.to(memory_format=torch.channels_last)
            step = train_step(model, build_stock_optimizer(cfg, model), batch, dtype)
            candidates[f"Detectron2, {name}"] = step
        yield f"train step, {size.title}", candidates


def inference(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """Ours in bf16 and fp32, folded, and the peers in fp32. torchvision's takes images in their own
    size, has group norm in its head and, untrained, no scores above its threshold."""
    for size in sizes:
        (stock, ours), batch = make_pair(size, device), make_batch(size)
        candidates = {
            f"ours, {precision}": detect(inference_copy(ours, precision), batch)
            for precision in precisions(device)
        }
        candidates["Detectron2, fp32"] = detect(stock, batch)
        short, long = sorted((size.height, size.width))
        options = {"num_classes": size.classes, "min_size": short, "max_size": long}
        peer = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, **options).to(device)
        images = [x["image"].to(device).float() / 255 for x in batch]
        candidates["torchvision v2, fp32"] = detect(peer, images)
        yield f"inference, {size.title}", candidates


def formats(device: torch.device, sizes: Sequence[Size]) -> Iterator[Case]:
    """The four combinations in fp32, channels_last everywhere first. A size is for one network;
    a single one is for both."""
    for (name, config), size in zip(NETWORKS.items(), cycle(sizes), strict=False):
        cfg, batch = make_cfg(size, device, config=config), make_batch(size)
        detections, steps = {}, {}
        for backbone, head in product(FORMATS, repeat=2):
            model = make_detector(cfg, size)
            copy = in_formats(inference_copy(model), backbone, head)
            detections[f"{backbone} → {head}"] = detect(copy, batch[:1])
            optimizer = Trainer.build_optimizer(cfg, in_formats(model, backbone, head))
            steps[f"{backbone} → {head}"] = train_step(model, optimizer, batch)
        yield f"inference, backbone → head, {name}, {size._replace(images=1).title}", detections
        yield f"train step, backbone → head, {name}, {size.title}", steps


def make_pair(size: Size, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Detectron2's RetinaNet, and FocalRetinaNet with the same weights."""
    stock = make_detector(make_cfg(size, device, meta_arch="RetinaNet"), size)
    ours = build_model(make_cfg(size, device))
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def detect(model: nn.Module, images: list) -> Candidate:
    return partial(torch.inference_mode()(model.eval()), images)


def train_step(
    model: nn.Module, optimizer: Optimizer, batch: list[dict], dtype: torch.dtype = torch.float32
) -> Candidate:
    """Forward, backward and the optimizer's step, as the trainers of both do them, under autocast
    unless in fp32."""
    device = model.train().device.type
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def step() -> None:
        with EventStorage(), torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        scaler.scale(losses).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def in_formats(model: nn.Module, backbone: str, head: str) -> nn.Module:
    """Lay out the weights of both parts, and convert what goes into them: a convolution runs in
    channels_last if its weight or its input has that."""
    model.backbone.to(memory_format=FORMATS[backbone]).register_forward_pre_hook(
        lambda _, args: (args[0].contiguous(memory_format=FORMATS[backbone]),)
    )
    model.head.to(memory_format=FORMATS[head])
    model.head_memory_format = FORMATS[head]
    return model
