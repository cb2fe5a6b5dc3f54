"""Models from converted weights, for the tests of focal_retina.interop."""

import dataclasses

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers import default_cfg

from focal_retina.interop import ADAPTERS
from focal_retina.interop.convert import Conversion, convert
from focal_retina.interop.spec import settings_of


def to_detectron2(data, name: str, num_classes: int = 80, **kwargs) -> Conversion:
    source = ADAPTERS[name]
    spec = source.spec_of(num_classes)
    return convert(data, source, ADAPTERS["detectron2"], spec, **kwargs)


def from_detectron2(conversion: Conversion, name: str) -> Conversion:
    return convert(conversion.data, ADAPTERS["detectron2"], ADAPTERS[name], conversion.spec)


def with_keys(conversion: Conversion, *opts) -> Conversion:
    """With other values of the config's keys."""
    spec = conversion.spec.clone()
    spec.merge_from_list(list(opts))
    return dataclasses.replace(conversion, spec=spec)


def build_network(conversion: Conversion):
    """By what is written of the conversion's config."""
    cfg = default_cfg()
    cfg.merge_from_other_cfg(CfgNode(settings_of(conversion.spec)))
    return build_model(cfg).eval()


def build_detector(conversion: Conversion):
    """FocalRetinaNet by the config of the conversion, with its weights and no other."""
    model = build_network(conversion)
    model.load_state_dict(conversion.tensors, strict=True)
    return model


@torch.no_grad()
def predict(model, image):
    """Logits (R, K), deltas (R, 4) and anchors (R, 4) of one image, and what the network saw."""
    images = model.preprocess_image([{"image": image}])
    anchors, logits, deltas = model.dense_predictions(images.tensor)
    boxes = torch.cat([level.tensor for level in anchors])
    return torch.cat(logits, dim=1)[0], torch.cat(deltas, dim=1)[0], boxes, images.tensor


def ratios_fastest(rows):
    """(R, …) in the order of anchors of torchvision and mmdetection to Detectron2's, for 3 x 3."""
    return rows.unflatten(0, (-1, 3, 3)).transpose(1, 2).flatten(0, 2)
