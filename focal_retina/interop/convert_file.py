"""A file of weights to another library's, and the settings that its model needs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import get_cfg

from ..config import add_focal_retina_config
from ..config_file import merge_config_file
from .convert import Conversion, convert
from .files import load_weights, save_weights
from .formats import WEIGHT_FORMATS
from .reading import BN_EPS
from .structure import Structure


def convert_file(
    path: Path,
    source: str,
    target: str,
    *,
    num_classes: int | None = None,
    num_anchors: int | None = None,
    aspect_ratios: Sequence[float] | None = None,
    config_file: Path | None = None,
    bn_eps: float = BN_EPS,
) -> Conversion:
    """Read a file of weights and convert what it holds.

    Args:
        source, target: names in ``WEIGHT_FORMATS``.
        num_classes, num_anchors, aspect_ratios: of the source; None: 80, 9 and .5, 1, 2, or the
            config's.
        config_file: of the source, if that is Detectron2.
        bn_eps: epsilon of the source's batch norms.

    Raises:
        ValueError: the file is not what is stated.
        OSError: a file cannot be read.
    """
    source_format = WEIGHT_FORMATS[source]
    if config_file is None:
        structure = source_format.structure(
            80 if num_classes is None else num_classes,
            9 if num_anchors is None else num_anchors,
            tuple(aspect_ratios or (0.5, 1.0, 2.0)),
        )
    elif source_format.is_configurable:
        structure = _structure_of_config(config_file)
        _check_stated(structure, num_classes, num_anchors, aspect_ratios)
    else:
        raise ValueError(f"--config-file is for weights from detectron2, not from {source}")
    data = load_weights(path)
    try:
        return convert(data, source_format, WEIGHT_FORMATS[target], structure, bn_eps=bn_eps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_conversion(
    conversion: Conversion, path: Path, target: str, config_out: Path | None = None
) -> None:
    """Write the weights, and what they need of their model.

    Args:
        path: its ending tells the kind of file.
        target: the format of the weights.
        config_out: yaml file for :func:`settings_of`.

    Raises:
        ValueError: of an unknown ending.
        OSError: a file cannot be written.
    """
    save_weights(path, conversion.data, conversion.tensors)
    if config_out is not None:
        settings = settings_of(conversion, is_config=WEIGHT_FORMATS[target].is_configurable)
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
        config_out.write_text(f"# What {path.name} needs of its model.\n{text}")


def _check_stated(
    structure: Structure,
    num_classes: int | None,
    num_anchors: int | None,
    aspect_ratios: Sequence[float] | None,
) -> None:
    anchors = structure.anchors
    for option, stated, found in (
        ("--num-classes", num_classes, structure.num_classes),
        ("--num-anchors", num_anchors, anchors.per_position),
        ("--aspect-ratios", aspect_ratios and tuple(aspect_ratios), anchors.ratios),
    ):
        if stated not in (None, found):
            raise ValueError(f"{option} {stated}, but {found} in the config")


def _structure_of_config(path: Path) -> Structure:
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(path))
    return Structure.from_config(cfg)


def settings_of(conversion: Conversion, *, is_config: bool) -> dict[str, Any]:
    """What a model needs so that it computes the same with the converted weights.

    Args:
        is_config: in keys of Detectron2's config, for its names of tensors.
    """
    architecture, tensors = conversion.architecture, conversion.tensors
    if not is_config:
        fields = {**dataclasses.asdict(conversion.structure), **dataclasses.asdict(architecture)}
        return _without_tuples(fields)
    settings = conversion.structure.config()
    model = settings["MODEL"]
    block = "backbone.bottom_up.res2.0"
    last_conv = "conv3" if architecture.has_bottlenecks else "conv2"
    model["RESNETS"] |= {
        "DEPTH": architecture.depth,
        "NORM": "FrozenBN",
        "STEM_OUT_CHANNELS": len(tensors["backbone.bottom_up.stem.conv1.weight"]),
        "RES2_OUT_CHANNELS": len(tensors[f"{block}.{last_conv}.weight"]),
    }
    if architecture.has_bottlenecks:
        channels, channels_of_group = tensors[f"{block}.conv2.weight"].shape[:2]
        num_groups = channels // channels_of_group
        model["RESNETS"] |= {"NUM_GROUPS": num_groups, "WIDTH_PER_GROUP": channels // num_groups}
    model["FPN"] |= {
        "NORM": architecture.fpn_norm,
        "OUT_CHANNELS": len(tensors["backbone.fpn_output5.weight"]),
    }
    model["RETINANET"] |= {"NORM": architecture.head_norm, "NUM_CONVS": architecture.num_convs}
    return settings


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, (tuple, list)) else value
