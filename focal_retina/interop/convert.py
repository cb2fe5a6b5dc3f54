"""Weights of one library to another's, by way of Detectron2's names and order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .architecture import Architecture
from .formats import WeightFormat
from .reading import BN_EPS, read_tensors, to_detectron2
from .report import Report
from .structure import Structure
from .writing import adapt, is_neutral


@dataclass(frozen=True)
class Conversion:
    """Result of :func:`convert`.

    Attributes:
        tensors: by the target's names.
        data: what the target's library saves and loads, with the tensors in it.
        structure: what the tensors mean.
        architecture: which they are.
    """

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    structure: Structure
    architecture: Architecture
    report: Report


def convert(
    data: Mapping[str, Any],
    source: WeightFormat,
    target: WeightFormat,
    structure: Structure,
    *,
    bn_eps: float = BN_EPS,
) -> Conversion:
    """Convert what was loaded from a file.

    Args:
        data: tensors or arrays by name, within what the library saves around them.
        structure: of the source: :meth:`WeightFormat.structure`, or :meth:`Structure.from_config`.
        bn_eps: epsilon of the source's batch norms.

    Raises:
        ValueError: the file is not of this format, or has other numbers of classes or anchors than
            ``structure``.
    """
    report = Report()
    tensors, structure = read_tensors(data, source, structure, report)
    architecture = source.find_architecture(tensors.keys())
    ours = to_detectron2(tensors, source, structure, architecture, report, bn_eps=bn_eps)
    if not target.is_configurable:
        structure = adapt(ours, target, structure, architecture, report)

    source_keys, target_keys = source.keys(architecture), target.keys(architecture)
    converted = {key: ours[name] for name, key in target_keys.items() if name in ours}
    report.missing += [key for name, key in target_keys.items() if name not in ours]
    report.unused += [
        source_keys.get(name, name)
        for name, tensor in ours.items()
        if name not in target_keys and not is_neutral(name, tensor)
    ]
    wrapped = target.wrap(converted, structure, architecture.depth)
    return Conversion(converted, wrapped, structure, architecture, report)
