"""Weights under Detectron2's names to what another library fixes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import head_rows
from .architecture import Architecture
from .formats import WeightFormat
from .reading import BN_EPS, BOX_OUTPUT, CLS_OUTPUT, STEM
from .report import Report
from .structure import Structure

_SAME_PIXEL = 1e-4  # anchors nearer than this are the same
_SAME_MEAN = 1e-2  # of values of 0 to 255


def adapt(
    ours: dict[str, Tensor],
    target: WeightFormat,
    structure: Structure,
    architecture: Architecture,
    report: Report,
) -> Structure:
    """Change the tensors, in place, to what ``target`` fixes: pixels, classes, order of anchors.

    Returns:
        What the tensors mean from then on.
    """
    report.differences += _differences(target, structure, architecture)
    _write_stem(ours, target, structure, report)
    if structure.box_weights != (1.0, 1.0, 1.0, 1.0):
        _fold_box_weights(ours, structure)
        report.changes.append("box output divided by MODEL.RETINANET.BBOX_REG_WEIGHTS")
    _write_head(ours, target, structure, report)
    if not any(name.endswith("running_mean") for name in target.keys(architecture)):
        _fold_batch_norms(ours)
        report.changes.append("statistics of batch norms folded into their scale and bias")
    assert target.pixels is not None
    pixels = replace(target.pixels, mean=structure.pixels.in_order(target.pixels.order).mean)
    anchors = replace(structure.anchors, generator=target.generator, offset=target.offset)
    return replace(structure, pixels=pixels, anchors=anchors, box_weights=(1.0, 1.0, 1.0, 1.0))


def is_neutral(name: str, tensor: Tensor) -> bool:
    """Whether a tensor can be left out: a bias or mean of 0, or a variance that changes nothing."""
    value = 1 - BN_EPS if name.endswith("running_var") else 0.0
    return not name.endswith("weight") and bool((tensor == tensor.new_tensor(value)).all())


def _differences(
    target: WeightFormat, structure: Structure, architecture: Architecture
) -> list[str]:
    """What the target would do otherwise with the same weights."""
    values = {
        "norm of the subnets": (architecture.head_norm, target.head_norms),
        "norm of the FPN": (architecture.fpn_norm, target.fpn_norms),
        "convolutions of a subnet": (architecture.num_convs, target.num_convs),
        "P6 from": (structure.p6_from, (target.p6_from,)),
        "ReLU between P6 and P7": (structure.p7_relu, (target.p7_relu,)),
    }
    if architecture.has_bottlenecks:
        values["stride in the first 1x1 convolution"] = (
            structure.stride_in_1x1,
            (target.stride_in_1x1,),
        )
    found = [
        f"{what}: {_text(value)} here, {' or '.join(map(_text, known))} in {target.name}"
        for what, (value, known) in values.items()
        if value not in known
    ]
    theirs = replace(structure.anchors, generator=target.generator, offset=target.offset)
    distance = structure.anchors.distance(theirs)
    if distance > _SAME_PIXEL:
        found.append(f"anchors: up to {distance:.3g} px from those of {target.name}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value or "none")


def _write_stem(
    ours: dict[str, Tensor], target: WeightFormat, structure: Structure, report: Report
) -> None:
    assert target.pixels is not None
    source = structure.pixels.in_order(target.pixels.order)
    ours[STEM] = structure.pixels.adapt(ours[STEM], target.pixels)
    if source.order != structure.pixels.order:
        report.changes.append(f"first convolution: {structure.pixels.order} to {source.order}")
    if source.std != target.pixels.std:
        report.changes.append(
            f"first convolution: for pixels divided by {target.pixels.std}, not by {source.std}"
        )
    pairs = zip(source.mean, target.pixels.mean, strict=True)
    if max(abs(a - b) for a, b in pairs) > _SAME_MEAN:
        message = f"pixel mean {source.mean} ({source.order}), not {target.pixels.mean}"
        if target.has_fixed_mean:
            report.differences.append(message)
        else:
            report.changes.append(f"{message}: set it there")


def _fold_box_weights(ours: dict[str, Tensor], structure: Structure) -> None:
    scale = torch.tensor(structure.box_weights).repeat(structure.anchors.per_position)
    for part in ("weight", "bias"):
        tensor = ours[f"{BOX_OUTPUT}.{part}"]
        divisor = scale.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        ours[f"{BOX_OUTPUT}.{part}"] = tensor / divisor


def _write_head(
    ours: dict[str, Tensor], target: WeightFormat, structure: Structure, report: Report
) -> None:
    num_classes, has_background = structure.num_classes, target.has_background_row
    num_rows = head_rows.rows_to_write(num_classes, has_background_row=has_background)
    rows = head_rows.class_rows(num_rows, num_classes, has_background_row=has_background)
    for part in ("weight", "bias"):
        for output, used, count in ((CLS_OUTPUT, rows, num_rows), (BOX_OUTPUT, [0, 1, 2, 3], 4)):
            name = f"{output}.{part}"
            ours[name] = head_rows.write_channels(
                ours[name],
                structure.anchors,
                used,
                count,
                sizes_vary_fastest=target.sizes_vary_fastest,
            )
    if num_rows != num_classes:
        report.changes.append(
            f"{num_rows} rows of classes an anchor for {num_classes} classes: the others always "
            "score .01"
        )
    if target.sizes_vary_fastest:
        report.changes.append(f"anchors in the order of {target.name}: sizes vary fastest")


def _fold_batch_norms(ours: dict[str, Tensor]) -> None:
    for name in [name for name in ours if name.endswith(".running_mean")]:
        norm = name.removesuffix(".running_mean")
        scale = ours[f"{norm}.weight"] * (ours[f"{norm}.running_var"] + BN_EPS).rsqrt()
        ours[f"{norm}.bias"] = ours[f"{norm}.bias"] - ours[name] * scale
        ours[f"{norm}.weight"] = scale
        ours[name] = torch.zeros_like(scale)
        ours[f"{norm}.running_var"] = torch.full_like(scale, 1 - BN_EPS)
