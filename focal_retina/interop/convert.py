"""Weights of one library to another's, by way of Detectron2's names and order."""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from detectron2.config import CfgNode

from .adapter import Adapter, Data, Tensors, read_head, write_head
from .detectron2 import DETECTRON2
from .spec import OUTPUTS, STEM, first_boxes, make_spec, read_architecture, tensor_names

BN_EPS = 1e-5  # of the batch norms of Detectron2, torchvision, mmdetection and ODTK
_STEM = f"{STEM}.weight"
_OUTPUTS = [f"{output}.{part}" for output in OUTPUTS.values() for part in ("weight", "bias")]
_SAME_PIXEL = 1e-4  # anchors nearer than this are the same
_SAME_MEAN = 1e-2  # of values of 0 to 255
_FIXED = {  # what a library computes one way
    "norm of the subnets": "MODEL.RETINANET.NORM",
    "norm of the FPN": "MODEL.FPN.NORM",
    "convolutions of a subnet": "MODEL.RETINANET.NUM_CONVS",
    "P6 from": "MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE",
    "ReLU between P6 and P7": "MODEL.FOCAL_RETINA.TOP_BLOCK.RELU",
    "stride in the first 1x1 convolution": "MODEL.RESNETS.STRIDE_IN_1X1",
}


@dataclass
class Report:
    """What a conversion did, and what it could not do."""

    changed: list[str] = field(default_factory=list)  # on the way, so that nothing else changes
    differs: list[str] = field(default_factory=list)  # what the target computes otherwise
    unused: list[str] = field(default_factory=list)  # tensors without a place in the target
    missing: list[str] = field(default_factory=list)  # the target's that the source does not have

    @property
    def is_complete(self) -> bool:
        return not (self.differs or self.unused or self.missing)

    def lines(self) -> list[str]:
        return [f"{kind}: {entry}" for kind, entries in vars(self).items() for entry in entries]


@dataclass
class Conversion:
    """Result of :func:`convert`, and what it works on."""

    tensors: Tensors  # by the target's names; on the way, by ours (see :mod:`.spec`)
    names: list[str]  # ours of every tensor that the model has
    spec: CfgNode  # what the tensors mean
    report: Report
    class_rows: int | None = None
    """Classification rows of an anchor in the file, where there is none of background, of a library
    that can have one; else None."""
    data: dict[str, Any] = field(default_factory=dict)  # what the target's library saves and loads


def convert(
    data: Data, source: Adapter, target: Adapter, spec: CfgNode, *, bn_eps: float = BN_EPS
) -> Conversion:
    """Convert ``data``: tensors or arrays by name, within what the source saves around them.

    ``spec`` and ``bn_eps``, the epsilon of batch norms, are the source's.

    Raises:
        ValueError: the file is not of this library, or has other numbers of classes or anchors than
            ``spec``.
    """
    conversion = _read(data, source, spec.clone())
    _to_detectron2(conversion, source, bn_eps)
    if not target.needs_config:
        _from_detectron2(conversion, target)

    ours, report, spec = conversion.tensors, conversion.report, conversion.spec
    conversion.tensors = {}
    for name in conversion.names:
        key = target.to_key(name, spec)
        if key is None:
            if name in ours and not _is_neutral(name, ours):
                report.unused.append(source.to_key(name, spec) or name)
        elif name in ours:
            conversion.tensors[key] = ours[name]
        else:
            report.missing.append(key)
    conversion.data = target.wrap(conversion.tensors, spec)
    if target.needs_config and conversion.class_rows:
        conversion.data["class_rows"] = conversion.class_rows  # for the way back
    return conversion


def _read(data: Data, source: Adapter, spec: CfgNode) -> Conversion:
    """The file's tensors under our names."""
    report = Report()
    tensors = _without_spare(source.unwrap(data, spec), source, report)
    names = source.from_keys(tensors)
    ours = {name: tensors[key] for key, name in names.items()}
    for name in (*_OUTPUTS, _STEM):
        if name not in ours:
            key = source.to_key(name, spec)
            raise ValueError(f"there is no {key} in it: it is no RetinaNet of {source.name}")
    read_architecture(ours, spec)
    known = list(DETECTRON2.from_keys(tensor_names(spec)).values())
    report.unused += sorted(key for key in tensors if names.get(key) not in known)
    ours = {name: ours[name] for name in known if name in ours}
    return Conversion(ours, known, spec, report, class_rows=data.get("class_rows"))


def _without_spare(values: Data, source: Adapter, report: Report) -> Tensors:
    tensors = {}
    left_out: dict[str, list[str]] = {}
    for key, value in values.items():
        reasons = [reason for prefix, reason in source.spare.items() if key.startswith(prefix)]
        if key.endswith(".num_batches_tracked"):
            reasons = ["counters of the training"]
        if reasons:
            left_out.setdefault(reasons[0], []).append(key)
            continue
        try:
            tensors[key] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            found = type(value).__name__
            raise ValueError(f"{key} is a {found}, and no array of numbers") from error
    report.changed += [
        f"left out {', '.join(keys[:2])}{', …' * (len(keys) > 2)} ({len(keys)}): {reason}"
        for reason, keys in left_out.items()
    ]
    return tensors


def _to_detectron2(conversion: Conversion, source: Adapter, bn_eps: float) -> None:
    """To Detectron2's classes and order of anchors, and with tensors that the source omits."""
    ours, report, spec = conversion.tensors, conversion.report, conversion.spec
    _check_top_block(ours, source, spec)
    num_rows, rows = read_head(ours, source, spec)
    if left_out := sorted(set(range(num_rows)) - set(rows)):
        report.changed.append(
            f"left out rows {', '.join(map(str, left_out))} of each anchor's {num_rows} classes: "
            "they are of no class"
        )
    elif source.has_background_row:
        conversion.class_rows = num_rows
    if source.sizes_vary_fastest:
        report.changed.append("anchors in Detectron2's order: aspect ratios vary fastest")
    if bn_eps != BN_EPS:
        report.changed.append(f"variances of batch norms by {bn_eps:g} - {BN_EPS:g}, for epsilon")
        for name in [name for name in ours if name.endswith("running_var")]:
            ours[name] = ours[name] + (bn_eps - BN_EPS)
    added = []
    for name in conversion.names:
        weight = ours.get(name.rpartition(".")[0] + ".weight")
        if name not in ours and weight is not None and source.to_key(name, spec) is None:
            ours[name] = weight.new_full((len(weight),), _neutral_value(name))
            added.append(name)
    if added:
        report.changed.append(
            f"added {len(added)} tensors that {source.name} computes without, such as {added[0]}: "
            "they change nothing"
        )


def _check_top_block(ours: Tensors, source: Adapter, spec: CfgNode) -> None:
    """P6 from P5 or from C5 shows in the channels that its convolution takes."""
    p6, lateral = ours.get("backbone.top_block.p6.weight"), ours.get("backbone.fpn_lateral5.weight")
    if p6 is None or lateral is None:
        return
    p6_from = spec.MODEL.FOCAL_RETINA.TOP_BLOCK.IN_FEATURE
    channels = lateral.shape[0] if p6_from == "p5" else lateral.shape[1]
    if p6.shape[1] != channels:
        raise ValueError(
            f"P6 is computed from {p6.shape[1]} channels in it, but {source.name} has {channels} "
            f"({p6_from})"
        )


def _neutral_value(name: str) -> float:
    """Of a bias, mean or variance that changes nothing: a variance that with epsilon is 1."""
    return 1 - BN_EPS if name.endswith("running_var") else 0.0


def _is_neutral(name: str, ours: Tensors) -> bool:
    value = ours[name].new_tensor(_neutral_value(name))
    return not name.endswith("weight") and bool((ours[name] == value).all())


def _from_detectron2(conversion: Conversion, target: Adapter) -> None:
    """Change the tensors to what ``target`` fixes: pixels, classes, order of anchors."""
    ours, report, spec = conversion.tensors, conversion.report, conversion.spec
    theirs = make_spec(target.config)
    report.differs += _differences(spec, theirs, target)
    _write_stem(conversion, theirs, target)
    if spec.MODEL.RETINANET.BBOX_REG_WEIGHTS != theirs.MODEL.RETINANET.BBOX_REG_WEIGHTS:
        weights = torch.tensor(spec.MODEL.RETINANET.BBOX_REG_WEIGHTS)
        for name in _OUTPUTS[2:]:
            by_coordinate = ours[name].unflatten(0, (-1, 4)).transpose(1, -1)
            ours[name] = (by_coordinate / weights).transpose(1, -1).flatten(0, 1)
        report.changed.append("box output divided by MODEL.RETINANET.BBOX_REG_WEIGHTS")
    num_classes = spec.MODEL.RETINANET.NUM_CLASSES
    num_rows = write_head(ours, target, spec, conversion.class_rows)
    if num_rows != num_classes:
        report.changed.append(
            f"{num_rows} rows of classes an anchor for {num_classes} classes: the others always "
            "score .01"
        )
    if target.sizes_vary_fastest:
        report.changed.append(f"anchors in the order of {target.name}: sizes vary fastest")
    if target.to_key(f"{STEM}.norm.running_mean", spec) is None:
        _fold_batch_norms(ours)
        report.changed.append("statistics of batch norms folded into their scale and bias")
    spec.MODEL.RETINANET.BBOX_REG_WEIGHTS = theirs.MODEL.RETINANET.BBOX_REG_WEIGHTS


def _differences(spec: CfgNode, theirs: CfgNode, target: Adapter) -> list[str]:
    """What the target would do otherwise with the same weights. Sets its anchors in ``spec``."""
    found = []
    for what, key in _FIXED.items():
        value = attrgetter(key)(spec)
        known = target.choices.get(key, (attrgetter(key)(theirs),)) or (value,)
        is_read = key != "MODEL.RESNETS.STRIDE_IN_1X1" or spec.MODEL.RESNETS.DEPTH >= 50
        if value not in known and is_read:
            names = " or ".join(map(_word, known))
            found.append(f"{what}: {_word(value)} here, {names} in {target.name}")
    boxes = first_boxes(spec)
    for name in ("NAME", "OFFSET"):
        spec.MODEL.ANCHOR_GENERATOR[name] = theirs.MODEL.ANCHOR_GENERATOR[name]
    distance = (first_boxes(spec) - boxes).abs().max().item()
    if distance > _SAME_PIXEL:
        found.append(f"anchors: up to {distance:.3g} px from those of {target.name}")
    return found


def _word(value: Any) -> str:
    return {"True": "yes", "False": "no", "": "none"}.get(str(value), str(value))


def _write_stem(conversion: Conversion, theirs: CfgNode, target: Adapter) -> None:
    """Make up for other pixels in the first convolution. No bias can make up for another mean,
    because the padding is 0 whatever the mean."""
    ours, report, spec = conversion.tensors, conversion.report, conversion.spec
    order, their_mean = theirs.INPUT.FORMAT, theirs.MODEL.PIXEL_MEAN
    step = 1 if order == spec.INPUT.FORMAT else -1
    mean, std = spec.MODEL.PIXEL_MEAN[::step], spec.MODEL.PIXEL_STD[::step]
    if order != spec.INPUT.FORMAT:
        ours[_STEM] = ours[_STEM].flip(1)
        report.changed.append(f"first convolution: {spec.INPUT.FORMAT} to {order}")
    if std != theirs.MODEL.PIXEL_STD:
        scale = torch.tensor(theirs.MODEL.PIXEL_STD) / torch.tensor(std)
        ours[_STEM] = ours[_STEM] * scale.to(ours[_STEM].dtype).view(1, 3, 1, 1)
        report.changed.append(
            f"first convolution: for pixels divided by {theirs.MODEL.PIXEL_STD}, not by {std}"
        )
    if max(abs(a - b) for a, b in zip(mean, their_mean, strict=True)) > _SAME_MEAN:
        message = f"pixel mean {mean} ({order}), not {their_mean}"
        if target.has_fixed_mean:
            report.differs.append(message)
        else:
            report.changed.append(f"{message}: set it there")
    spec.INPUT.FORMAT = order
    spec.MODEL.PIXEL_MEAN, spec.MODEL.PIXEL_STD = mean, theirs.MODEL.PIXEL_STD


def _fold_batch_norms(ours: Tensors) -> None:
    for mean in [name for name in ours if name.endswith(".running_mean")]:
        norm = mean.removesuffix(".running_mean")
        weight, bias, variance = f"{norm}.weight", f"{norm}.bias", f"{norm}.running_var"
        scale = ours[weight] * (ours[variance] + BN_EPS).rsqrt()
        ours[bias] = ours[bias] - ours[mean] * scale
        ours[weight] = scale
        for statistic in (mean, variance):
            ours[statistic] = torch.full_like(scale, _neutral_value(statistic))
