"""A library's weights to Detectron2's names, classes and order of anchors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import head_rows
from .architecture import Architecture
from .formats import WeightFormat
from .layouts import detectron2_keys
from .report import Report
from .structure import STRIDES, Structure

STEM = "backbone.bottom_up.stem.conv1.weight"
CLS_OUTPUT, BOX_OUTPUT = "head.cls_score", "head.bbox_pred"
BN_EPS = 1e-5  # of the batch norms of Detectron2, torchvision, mmdetection and ODTK


def to_detectron2(
    tensors: dict[str, Tensor],
    source: WeightFormat,
    structure: Structure,
    architecture: Architecture,
    report: Report,
    *,
    bn_eps: float = BN_EPS,
) -> dict[str, Tensor]:
    """The tensors under Detectron2's names, for weights that mean ``structure``.

    Raises:
        ValueError: they are no RetinaNet of this format, or of other numbers of classes or anchors
            than ``structure``.
    """
    keys = source.keys(architecture)
    ours = {name: tensors[key] for name, key in keys.items() if key in tensors}
    report.unused += sorted(tensors.keys() - set(keys.values()))
    _check_outputs(ours, source, keys)
    _check_top_block(ours, source, structure)
    _read_head(ours, source, structure, report)
    _complete(ours, keys, source, architecture, bn_eps, report)
    return ours


def read_tensors(
    data: Mapping[str, Any], source: WeightFormat, structure: Structure, report: Report
) -> tuple[dict[str, Tensor], Structure]:
    """Tensors of the file by name, and the structure with what else the file says."""
    named, metadata = source.unwrap(data)
    stated = metadata.get("num_classes")
    if stated is not None and stated != structure.num_classes:
        raise ValueError(
            f"the file is of {stated} classes, and not the {structure.num_classes} that are stated "
            "(--num-classes, or the config)"
        )
    anchors = structure.anchors
    if "ratios" in metadata and "scales" in metadata:
        sizes = tuple(tuple(stride * s for s in metadata["scales"]) for stride in STRIDES)
        found = replace(anchors, sizes=sizes, ratios=metadata["ratios"])
        if found.per_position != anchors.per_position:
            raise ValueError(
                f"the file is of {found.per_position} anchors a position, and not the "
                f"{anchors.per_position} that are stated (--num-anchors, or the config)"
            )
        structure = replace(structure, anchors=found)
        report.changes.append(
            f"anchors of the file: scales {metadata['scales']}, aspect ratios {metadata['ratios']}"
        )

    tensors = {}
    left_out: dict[str, list[str]] = {}
    for name, value in named.items():
        reason = next((why for start, why in source.spare.items() if name.startswith(start)), None)
        if name.endswith(".num_batches_tracked"):
            reason = "counters of the training"
        if reason is None:
            tensors[name] = _as_tensor(name, value)
        else:
            left_out.setdefault(reason, []).append(name)
    report.changes += [
        f"left out {', '.join(names[:2])}{', …' * (len(names) > 2)} ({len(names)}): {reason}"
        for reason, names in left_out.items()
    ]
    return tensors, structure


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is a {type(value).__name__}, and no array of numbers") from error


def _check_outputs(
    ours: dict[str, Tensor], source: WeightFormat, source_keys: dict[str, str]
) -> None:
    names = [
        f"{output}.{part}" for output in (CLS_OUTPUT, BOX_OUTPUT) for part in ("weight", "bias")
    ]
    for name in [STEM, *names]:
        if name not in ours:
            raise ValueError(
                f"there is no {source_keys[name]} in it: it is no RetinaNet of {source.name}"
            )


def _check_top_block(ours: dict[str, Tensor], source: WeightFormat, structure: Structure) -> None:
    """P6 from P5 or from C5 shows in the channels that its convolution takes."""
    p6, lateral = ours.get("backbone.top_block.p6.weight"), ours.get("backbone.fpn_lateral5.weight")
    if p6 is None or lateral is None:
        return
    channels = {"p5": lateral.shape[0], "res5": lateral.shape[1]}
    if p6.shape[1] != channels[structure.p6_from]:
        raise ValueError(
            f"P6 is computed from {p6.shape[1]} channels in it, but {source.name} has "
            f"{channels[structure.p6_from]} ({structure.p6_from})"
        )


def _read_head(
    ours: dict[str, Tensor], source: WeightFormat, structure: Structure, report: Report
) -> None:
    """Detectron2's classes and order of anchors."""
    anchors, order = structure.anchors, source.sizes_vary_fastest
    num_rows = head_rows.count_rows(
        len(ours[f"{CLS_OUTPUT}.bias"]), len(ours[f"{BOX_OUTPUT}.bias"]), anchors.per_position
    )
    rows = head_rows.class_rows(
        num_rows, structure.num_classes, has_background_row=source.has_background_row
    )
    for part in ("weight", "bias"):
        for output, taken in ((CLS_OUTPUT, rows), (BOX_OUTPUT, list(range(4)))):
            name = f"{output}.{part}"
            ours[name] = head_rows.read_channels(
                ours[name], anchors, taken, sizes_vary_fastest=order
            )
    left_out = sorted(set(range(num_rows)) - set(rows))
    if left_out:
        report.changes.append(
            f"left out rows {', '.join(map(str, left_out))} of each anchor's {num_rows} classes: "
            "they are of no class"
        )
    if order:
        report.changes.append("anchors in Detectron2's order: aspect ratios vary fastest")


def _complete(
    ours: dict[str, Tensor],
    source_keys: dict[str, str],
    source: WeightFormat,
    architecture: Architecture,
    bn_eps: float,
    report: Report,
) -> None:
    """Add the tensors that Detectron2 has and the source's layout does not need."""
    from_source = {name for name in ours if name.endswith("running_var")}
    if bn_eps != BN_EPS:
        report.changes.append(f"variances of batch norms by {bn_eps:g} - {BN_EPS:g}, for epsilon")
        for name in from_source:
            ours[name] = ours[name] + (bn_eps - BN_EPS)
    added = []
    for name in detectron2_keys(architecture):
        module, _, part = name.rpartition(".")
        like = ours.get(f"{module}.weight")
        if name in source_keys or like is None:
            continue
        value = 1 - BN_EPS if part == "running_var" else 0.0  # a variance that with epsilon is 1
        ours[name] = like.new_full((len(like),), value)
        added.append(name)
    if added:
        report.changes.append(
            f"added {len(added)} tensors that {source.name} computes without, such as {added[0]}: "
            "they change nothing"
        )
