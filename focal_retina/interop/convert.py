"""Weights of one library to another's, by way of Detectron2's names and order."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .adapter import Adapter, Data, Tensors
from .architecture import OUTPUTS, STEM, Architecture
from .head_channels import read_head, write_head
from .spec import ModelSpec

BN_EPS = 1e-5  # of the batch norms of Detectron2, torchvision, mmdetection and ODTK
_STEM = f"{STEM}.weight"
_OUTPUTS = [f"{output}.{part}" for output in OUTPUTS.values() for part in ("weight", "bias")]
_SAME_PIXEL = 1e-4  # anchors nearer than this are the same
_SAME_MEAN = 1e-2  # of values of 0 to 255


@dataclass
class Report:
    """What a conversion did, and what it could not do.

    Attributes:
        changed: on the way, so that nothing else changes.
        differs: how the target computes otherwise with the same weights.
        unused: the source's tensors that the target has no place for.
        missing: the target's tensors that the source does not have.
    """

    changed: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return not (self.differs or self.unused or self.missing)

    def lines(self) -> list[str]:
        return [f"{kind}: {entry}" for kind, entries in vars(self).items() for entry in entries]


@dataclass
class Conversion:
    """Result of :func:`convert`, and what it works on.

    Attributes:
        tensors: by the target's names; on the way, by ours (see :mod:`.architecture`).
        spec: what the tensors mean.
        architecture: which they are.
        data: what the target's library saves and loads, with the tensors in it.
    """

    tensors: Tensors
    spec: ModelSpec
    architecture: Architecture
    report: Report
    data: Data = field(default_factory=dict)


def convert(
    data: Data, source: Adapter, target: Adapter, spec: ModelSpec, *, bn_eps: float = BN_EPS
) -> Conversion:
    """Convert what was loaded from a file.

    Args:
        data: tensors or arrays by name, within what the library saves around them.
        spec: of the source: :meth:`Adapter.spec_of`, or :meth:`ModelSpec.from_config`.
        bn_eps: epsilon of the source's batch norms.

    Raises:
        ValueError: the file is not of this library, or has other numbers of classes or anchors than
            ``spec``.
    """
    conversion = _read(data, source, spec)
    _to_detectron2(conversion, source, bn_eps)
    if not target.is_configurable:
        _from_detectron2(conversion, target)

    ours, report, architecture = conversion.tensors, conversion.report, conversion.architecture
    conversion.tensors = {}
    for name in architecture.names():
        key = target.to_key(name, architecture)
        if key is None:
            if name in ours and not _is_neutral(name, ours):
                report.unused.append(source.to_key(name, architecture) or name)
        elif name in ours:
            conversion.tensors[key] = ours[name]
        else:
            report.missing.append(key)
    conversion.data = target.wrap(conversion.tensors, conversion.spec, architecture)
    return conversion


def _read(data: Data, source: Adapter, spec: ModelSpec) -> Conversion:
    """The file's tensors under our names."""
    values, found = source.unwrap(data, spec)
    report = Report()
    if found.anchors != spec.anchors:
        sizes, ratios = found.anchors.sizes[0], found.anchors.ratios
        report.changed.append(f"anchors of the file: sizes {sizes} of P3, aspect ratios {ratios}")
    tensors = _without_spare(values, source, report)
    names = source.from_keys(tensors)
    ours = {name: tensors[key] for key, name in names.items()}
    _check_present(_OUTPUTS, ours, source, Architecture())
    architecture = Architecture.of(ours)
    _check_present([_STEM], ours, source, architecture)
    known = set(architecture.names())
    report.unused += sorted(key for key in tensors if names.get(key) not in known)
    return Conversion(
        {name: x for name, x in ours.items() if name in known}, found, architecture, report
    )


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


def _check_present(
    names: Iterable[str], ours: Tensors, source: Adapter, architecture: Architecture
) -> None:
    for name in names:
        if name not in ours:
            key = source.to_key(name, architecture)
            raise ValueError(f"there is no {key} in it: it is no RetinaNet of {source.name}")


def _to_detectron2(conversion: Conversion, source: Adapter, bn_eps: float) -> None:
    """Change the tensors to Detectron2's classes and order of anchors, and add those that the
    source does without."""
    ours, report = conversion.tensors, conversion.report
    _check_top_block(ours, source, conversion.spec)
    num_rows, rows = read_head(ours, source, conversion.spec)
    if left_out := sorted(set(range(num_rows)) - set(rows)):
        report.changed.append(
            f"left out rows {', '.join(map(str, left_out))} of each anchor's {num_rows} classes: "
            "they are of no class"
        )
    elif source.has_background_row:
        conversion.spec = replace(conversion.spec, class_rows=num_rows)
    if source.sizes_vary_fastest:
        report.changed.append("anchors in Detectron2's order: aspect ratios vary fastest")
    if bn_eps != BN_EPS:
        report.changed.append(f"variances of batch norms by {bn_eps:g} - {BN_EPS:g}, for epsilon")
        for name in [name for name in ours if name.endswith("running_var")]:
            ours[name] = ours[name] + (bn_eps - BN_EPS)
    added = []
    for name in conversion.architecture.names():
        weight = ours.get(name.rpartition(".")[0] + ".weight")
        is_theirs = source.to_key(name, conversion.architecture) is not None
        if name not in ours and not is_theirs and weight is not None:
            ours[name] = weight.new_full((len(weight),), _neutral_value(name))
            added.append(name)
    if added:
        report.changed.append(
            f"added {len(added)} tensors that {source.name} computes without, such as {added[0]}: "
            "they change nothing"
        )


def _check_top_block(ours: Tensors, source: Adapter, spec: ModelSpec) -> None:
    """P6 from P5 or from C5 shows in the channels that its convolution takes."""
    p6, lateral = ours.get("backbone.top_block.p6.weight"), ours.get("backbone.fpn_lateral5.weight")
    if p6 is None or lateral is None:
        return
    channels = {"p5": lateral.shape[0], "res5": lateral.shape[1]}[spec.p6_from]
    if p6.shape[1] != channels:
        raise ValueError(
            f"P6 is computed from {p6.shape[1]} channels in it, but {source.name} has {channels} "
            f"({spec.p6_from})"
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
    theirs = replace(
        spec,
        pixels=replace(
            target.spec.pixels, mean=spec.pixels.in_order(target.spec.pixels.order).mean
        ),
        anchors=replace(
            spec.anchors,
            generator=target.spec.anchors.generator,
            offset=target.spec.anchors.offset,
        ),
        box_weights=target.spec.box_weights,
    )
    report.differs += _differences(conversion, target)
    distance = spec.anchors.distance(theirs.anchors)
    if distance > _SAME_PIXEL:
        report.differs.append(f"anchors: up to {distance:.3g} px from those of {target.name}")
    _write_stem(conversion, target)
    if spec.box_weights != theirs.box_weights:
        scale = torch.tensor(spec.box_weights).repeat(spec.anchors.per_position)
        for name in _OUTPUTS[2:]:
            ours[name] = (ours[name].transpose(0, -1) / scale).transpose(0, -1)
        report.changed.append("box output divided by MODEL.RETINANET.BBOX_REG_WEIGHTS")
    num_rows = write_head(ours, target, spec)
    if num_rows != spec.num_classes:
        report.changed.append(
            f"{num_rows} rows of classes an anchor for {spec.num_classes} classes: the others "
            "always score .01"
        )
    if target.sizes_vary_fastest:
        report.changed.append(f"anchors in the order of {target.name}: sizes vary fastest")
    if target.to_key(f"{STEM}.norm.running_mean", conversion.architecture) is None:
        _fold_batch_norms(ours)
        report.changed.append("statistics of batch norms folded into their scale and bias")
    conversion.spec = theirs


def _differences(conversion: Conversion, target: Adapter) -> list[str]:
    """What the target would do otherwise with the same weights."""
    spec, theirs, architecture = conversion.spec, target.spec, conversion.architecture
    num_convs = architecture.num_convs
    values: dict[str, tuple[Any, tuple]] = {
        "norm of the subnets": (architecture.head_norm, target.head_norms),
        "norm of the FPN": (architecture.fpn_norm, target.fpn_norms),
        "convolutions of a subnet": (num_convs, (target.num_convs or num_convs,)),
        "P6 from": (spec.p6_from, (theirs.p6_from,)),
        "ReLU between P6 and P7": (spec.p7_relu, (theirs.p7_relu,)),
    }
    if architecture.has_bottlenecks:
        stride = "stride in the first 1x1 convolution"
        values[stride] = (spec.stride_in_1x1, (theirs.stride_in_1x1,))
    return [
        f"{what}: {_word(value)} here, {' or '.join(map(_word, known))} in {target.name}"
        for what, (value, known) in values.items()
        if value not in known
    ]


def _word(value: Any) -> str:
    return {"True": "yes", "False": "no", "": "none"}.get(str(value), str(value))


def _write_stem(conversion: Conversion, target: Adapter) -> None:
    """Make up for other pixels in the first convolution."""
    ours, report, spec = conversion.tensors, conversion.report, conversion.spec
    theirs = target.spec.pixels
    source = spec.pixels.in_order(theirs.order)
    ours[_STEM] = spec.pixels.adapt(ours[_STEM], theirs)
    if theirs.order != spec.pixels.order:
        report.changed.append(f"first convolution: {spec.pixels.order} to {theirs.order}")
    if source.std != theirs.std:
        report.changed.append(
            f"first convolution: for pixels divided by {theirs.std}, not by {source.std}"
        )
    if max(abs(a - b) for a, b in zip(source.mean, theirs.mean, strict=True)) > _SAME_MEAN:
        message = f"pixel mean {source.mean} ({source.order}), not {theirs.mean}"
        if target.has_fixed_mean:
            report.differs.append(message)
        else:
            report.changed.append(f"{message}: set it there")


def _fold_batch_norms(ours: Tensors) -> None:
    for name in [name for name in ours if name.endswith(".running_mean")]:
        weight, bias, mean, variance = (
            name.replace("running_mean", part)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = ours[weight] * (ours[variance] + BN_EPS).rsqrt()
        ours[bias] = ours[bias] - ours[mean] * scale
        ours[weight] = scale
        for statistic in (mean, variance):
            ours[statistic] = torch.full_like(scale, _neutral_value(statistic))
