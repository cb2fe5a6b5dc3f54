"""A file of weights to another library's, and the settings that its model needs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..engine import load_config
from . import ADAPTERS
from .architecture import STEM
from .convert import BN_EPS, Conversion, convert
from .spec import ModelSpec
from .weight_files import load_weights, save_weights


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
        source, target: names in ``ADAPTERS``.
        num_classes, num_anchors, aspect_ratios: of the source; None: 80, 9 and .5, 1, 2, or the
            config's.
        config_file: of the source, if that is Detectron2.
        bn_eps: epsilon of the source's batch norms.

    Raises:
        ValueError: the file is not what is stated.
        OSError: a file cannot be read.
    """
    adapter = ADAPTERS[source]
    if config_file is None:
        spec = adapter.spec_of(
            80 if num_classes is None else num_classes,
            9 if num_anchors is None else num_anchors,
            tuple(aspect_ratios or (0.5, 1.0, 2.0)),
        )
    elif adapter.is_configurable:
        spec = ModelSpec.from_config(load_config(config_file))
        for option, stated, found in (
            ("--num-classes", num_classes, spec.num_classes),
            ("--num-anchors", num_anchors, spec.anchors.per_position),
            ("--aspect-ratios", aspect_ratios and tuple(aspect_ratios), spec.anchors.ratios),
        ):
            if stated not in (None, found):
                raise ValueError(f"{option} {stated}, but {found} in the config")
    else:
        raise ValueError(f"--config-file is for weights from detectron2, not from {source}")
    data = load_weights(path)
    try:
        return convert(data, adapter, ADAPTERS[target], spec, bn_eps=bn_eps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_conversion(
    conversion: Conversion, path: Path, target: str, config_out: Path | None = None
) -> None:
    """Write the weights, and what they need of their model.

    Args:
        path: its ending tells the kind of file.
        target: the library of the weights.
        config_out: yaml file: a config for Detectron2, else the fields of the spec.

    Raises:
        ValueError: of an unknown ending.
        OSError: a file cannot be written.
    """
    save_weights(path, conversion.data, conversion.tensors)
    if config_out is not None:
        if ADAPTERS[target].is_configurable:
            settings = config_of(conversion)
        else:
            spec, architecture = conversion.spec, conversion.architecture
            settings = dataclasses.asdict(spec) | dataclasses.asdict(architecture)
            settings = json.loads(json.dumps(settings))  # lists instead of tuples
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
        config_out.write_text(f"# What {path.name} needs of its model.\n{text}")


def config_of(conversion: Conversion) -> dict[str, Any]:
    """The config of Detectron2 whose model computes the same with converted weights, as nested
    dicts."""
    architecture, tensors = conversion.architecture, conversion.tensors
    settings = conversion.spec.to_config()
    model = settings["MODEL"]
    block = "backbone.bottom_up.res2.0"
    last_conv = "conv3" if architecture.has_bottlenecks else "conv2"
    model["RESNETS"] |= {
        "DEPTH": architecture.depth,
        "NORM": "FrozenBN",
        "STEM_OUT_CHANNELS": len(tensors[f"{STEM}.weight"]),
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
