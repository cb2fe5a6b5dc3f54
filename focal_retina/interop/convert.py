"""Weights of one library to another's: one pass to Detectron2's names and order, one pass on."""

import math
import re
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from .adapter import DETECTRON2, Adapter, Data, Tensors
from .spec import (
    BOX,
    CLS,
    STEM,
    anchors_per_position,
    check_count,
    first_boxes,
    make_spec,
    read_architecture,
    tensor_shapes,
)

BN_EPS = 1e-5  # of the batch norms of Detectron2, torchvision, mmdetection and ODTK
_STEM = f"{STEM}.weight"
_OUTPUTS = [f"{output}.{part}" for output in (CLS, BOX) for part in ("weight", "bias")]
_UNUSED_LOGIT = -math.log(0.99 / 0.01)  # as untrained: a score of .01 (paper section 3.3)
_SAME_PIXEL = 1e-4  # anchors nearer than this are the same
_SAME_MEAN = 1e-2  # of values of 0 to 255
_FIXED = [  # what a library computes one way, unless it is free
    "MODEL.RETINANET.NORM",
    "MODEL.FPN.NORM",
    "MODEL.FPN.FUSE_TYPE",
    "MODEL.RETINANET.NUM_CONVS",
    "MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE",
    "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU",
]


@dataclass
class Conversion:
    """Converted weights, and what the conversion did and could not do."""

    tensors: Tensors  # by the target's names; on the way, by ours (see :mod:`.spec`)
    spec: CfgNode  # what the tensors mean
    data: dict[str, Any] = field(default_factory=dict)  # what the target's library saves and loads
    names: list[str] = field(default_factory=list)  # ours of every tensor that the model has
    # Classification rows of an anchor, if the file has none of background and its library can.
    class_rows: int | None = None
    changed: list[str] = field(default_factory=list)  # on the way, so that nothing else changes
    differs: list[str] = field(default_factory=list)  # what the target computes otherwise
    unused: list[str] = field(default_factory=list)  # tensors without a place in the target
    missing: list[str] = field(default_factory=list)  # the target's that the source does not have

    @property
    def is_complete(self) -> bool:
        return not (self.differs or self.unused or self.missing)

    def report(self) -> list[str]:
        kinds = ("changed", "differs", "unused", "missing")
        return [f"{kind}: {entry}" for kind in kinds for entry in getattr(self, kind)]


def convert(
    data: Data, source: Adapter, target: Adapter, spec: CfgNode, *, bn_eps: float = BN_EPS
) -> Conversion:
    """Convert ``data``: tensors or arrays by name, within what the source saves around them.

    ``spec`` and ``bn_eps``, the epsilon of batch norms, are the source's. A ValueError: the file is
    not of this library, or has other numbers of classes or anchors than ``spec``.
    """
    conversion = _to_detectron2(data, source, spec.clone(), bn_eps)
    if target is not DETECTRON2:
        _from_detectron2(conversion, target)
    ours, spec, conversion.tensors = conversion.tensors, conversion.spec, {}
    for name in conversion.names:
        key = target.to_key(name, spec)
        if key is not None and name in ours:
            conversion.tensors[key] = ours[name]
        elif key is not None:
            conversion.missing.append(key)
        elif name in ours and not _is_neutral(name, ours[name]):
            conversion.unused.append(source.to_key(name, spec) or name)
    conversion.data = target.wrap(conversion.tensors, spec)
    if target is DETECTRON2 and conversion.class_rows:
        conversion.data["class_rows"] = conversion.class_rows  # for the way back
    return conversion


def _to_detectron2(data: Data, source: Adapter, spec: CfgNode, bn_eps: float) -> Conversion:
    """The file's tensors by our names, with Detectron2's classes and order of anchors, and with
    those that the source computes without."""
    values = source.unwrap(data, spec)
    spare = [key for key in values if re.fullmatch(source.spare, key)]
    used = [x for x in values if x not in spare and not x.endswith(".num_batches_tracked")]
    keys = {name: key for key, name in source.from_keys(used).items()}
    if absent := [name for name in (*_OUTPUTS, _STEM) if name not in keys]:
        key = source.to_key(absent[0], spec)
        raise ValueError(f"there is no {key} in it: it is no RetinaNet of {source.name}")
    ours = {name: torch.as_tensor(values[key], device="cpu") for name, key in keys.items()}
    rows = data.get("class_rows")
    conversion = Conversion(ours, spec, class_rows=rows if type(rows) is int else None)
    if spare:
        conversion.changed += [f"left out {len(spare)} tensors of no use, such as {spare[0]}"]
    if bn_eps != BN_EPS:
        conversion.changed += [f"variances of batch norms by {bn_eps:g} - {BN_EPS:g}, for epsilon"]
        for name in [x for x in ours if x.endswith("running_var")]:
            ours[name] = ours[name] + (bn_eps - BN_EPS)

    read_architecture(ours, spec)
    num_anchors = anchors_per_position(spec)
    check_count("anchors", ours[f"{BOX}.bias"].numel() // 4, num_anchors)
    num_rows = ours[f"{CLS}.bias"].numel() // num_anchors
    channels = source.output_channels(spec, num_rows)
    shapes = tensor_shapes(spec, num_rows)
    shapes = {name: shapes[key] for key, name in DETECTRON2.from_keys(shapes).items()}
    conversion.names = list(shapes)
    conversion.unused = sorted({*used} - {keys.get(name) for name in shapes})
    for name in [x for x in shapes if x in ours]:
        its, shape = list(ours[name].shape), shapes[name]
        if not ours[name].is_floating_point() or its != shape:
            raise ValueError(f"{keys[name]} is {ours[name].dtype} {its}, and not float {shape}")
    if added := [x for x in shapes if x not in ours and source.to_key(x, spec) is None]:
        ours |= {name: ours[_STEM].new_full(shapes[name], _neutral_value(name)) for name in added}
        conversion.changed += [f"added {len(added)} tensors without effect, such as {added[0]}"]
    for name in _OUTPUTS:
        ours[name] = ours[name][channels[name.rpartition(".")[0]]]
    rows = source.class_rows(num_rows, spec.MODEL.RETINANET.NUM_CLASSES)
    if unclassed := sorted(set(range(num_rows)) - set(rows)):
        conversion.changed.append(f"left out each anchor's rows of no class: {unclassed}")
    elif source.has_background_row:
        conversion.class_rows = num_rows
    if source.sizes_vary_fastest:
        conversion.changed.append("anchors in Detectron2's order: aspect ratios vary fastest")
    return conversion


def _neutral_value(name: str) -> float:
    """Of a bias, mean or variance that changes nothing: a variance that with epsilon is 1."""
    return 1 - BN_EPS if name.endswith("running_var") else 0.0


def _is_neutral(name: str, tensor: torch.Tensor) -> bool:
    value = tensor.new_tensor(_neutral_value(name))
    return not name.endswith("weight") and bool((tensor == value).all())


def _from_detectron2(conversion: Conversion, target: Adapter) -> None:
    """Change the tensors to what ``target`` fixes: pixels, classes, order of anchors."""
    ours, spec, theirs = conversion.tensors, conversion.spec, make_spec(target.config)
    conversion.differs = _differences(spec, theirs, target)
    _write_stem(conversion, theirs, target)
    if spec.MODEL.RETINANET.BBOX_REG_WEIGHTS != theirs.MODEL.RETINANET.BBOX_REG_WEIGHTS:
        weights = torch.tensor(spec.MODEL.RETINANET.BBOX_REG_WEIGHTS * anchors_per_position(spec))
        for name in _OUTPUTS[2:]:
            ours[name] = (ours[name].transpose(0, -1) / weights).transpose(0, -1)
        conversion.changed.append("box output divided by MODEL.RETINANET.BBOX_REG_WEIGHTS")
        spec.MODEL.RETINANET.BBOX_REG_WEIGHTS = theirs.MODEL.RETINANET.BBOX_REG_WEIGHTS
    _write_outputs(conversion, target)
    if target.to_key(f"{STEM}.norm.running_mean", spec) is None:
        _fold_batch_norms(ours)
        conversion.changed.append("statistics of batch norms folded into their scale and bias")


def _write_outputs(conversion: Conversion, target: Adapter) -> None:
    """The target's classes and order of anchors; a row of no class always scores .01."""
    ours, spec = conversion.tensors, conversion.spec
    num_classes = spec.MODEL.RETINANET.NUM_CLASSES
    num_rows = target.num_rows(num_classes, conversion.class_rows)
    channels = target.output_channels(spec, num_rows)
    for name in _OUTPUTS:
        output, _, part = name.rpartition(".")
        count = anchors_per_position(spec) * (num_rows if output == CLS else 4)
        unused = _UNUSED_LOGIT if part == "bias" else 0.0
        written = ours[name].new_full((count, *ours[name].shape[1:]), unused)
        written[channels[output]] = ours[name]
        ours[name] = written
    if num_rows != num_classes:
        conversion.changed.append(f"added {num_rows - num_classes} rows an anchor that score .01")
    if target.sizes_vary_fastest:
        conversion.changed.append(f"anchors in the order of {target.name}: sizes vary fastest")


def _differences(spec: CfgNode, theirs: CfgNode, target: Adapter) -> list[str]:
    """What the target would do otherwise with the same weights. Sets its anchors in ``spec``."""
    keys = [key for key in _FIXED if key not in target.free]
    if spec.MODEL.RESNETS.DEPTH >= 50:
        keys.append("MODEL.RESNETS.STRIDE_IN_1X1")
    values = [(key, attrgetter(key)(spec), attrgetter(key)(theirs)) for key in keys]
    found = [f"{key}: {x!r} here, {y!r} in {target.name}" for key, x, y in values if x != y]
    boxes = first_boxes(spec)
    for name in ("NAME", "OFFSET"):
        spec.MODEL.ANCHOR_GENERATOR[name] = theirs.MODEL.ANCHOR_GENERATOR[name]
    distance = (first_boxes(spec) - boxes).abs().max().item()
    if distance > _SAME_PIXEL:
        found.append(f"anchors: up to {distance:.3g} px from those of {target.name}")
    return found


def _write_stem(conversion: Conversion, theirs: CfgNode, target: Adapter) -> None:
    """Make up for other pixels in the first convolution. No bias can make up for another mean,
    because the padding is 0 whatever the mean."""
    ours, spec, changed = conversion.tensors, conversion.spec, conversion.changed
    order, their_std = theirs.INPUT.FORMAT, theirs.MODEL.PIXEL_STD
    mean, std = spec.MODEL.PIXEL_MEAN, spec.MODEL.PIXEL_STD
    if order != spec.INPUT.FORMAT:
        mean, std = mean[::-1], std[::-1]
        ours[_STEM] = ours[_STEM].flip(1)
        changed.append(f"first convolution: {spec.INPUT.FORMAT} to {order}")
    if std != their_std:
        scale = torch.tensor(their_std) / torch.tensor(std)
        ours[_STEM] = ours[_STEM] * scale.to(ours[_STEM].dtype).view(1, 3, 1, 1)
        changed.append(f"first convolution: for pixels divided by {their_std}, not by {std}")
    if not np.allclose(mean, theirs.MODEL.PIXEL_MEAN, rtol=0, atol=_SAME_MEAN):
        message = f"pixel mean {mean} ({order}), not {theirs.MODEL.PIXEL_MEAN}"
        if target.has_fixed_mean:
            conversion.differs.append(message)
        else:
            changed.append(f"{message}: set it there")
    spec.INPUT.FORMAT, spec.MODEL.PIXEL_MEAN, spec.MODEL.PIXEL_STD = order, mean, their_std


def _fold_batch_norms(ours: Tensors) -> None:
    for mean in [name for name in ours if name.endswith(".running_mean")]:
        norm = mean.removesuffix("running_mean")
        weight, bias, variance = f"{norm}weight", f"{norm}bias", f"{norm}running_var"
        if not {weight, bias, variance} <= ours.keys():
            continue  # the report says what is missing
        scale = ours[weight] * (ours[variance] + BN_EPS).rsqrt()
        ours[bias] = ours[bias] - ours[mean] * scale
        ours[weight] = scale
        for statistic in (mean, variance):
            ours[statistic] = torch.full_like(scale, _neutral_value(statistic))
