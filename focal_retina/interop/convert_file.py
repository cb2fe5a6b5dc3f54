"""A file of weights to another library's, and the settings that its model needs."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ..engine import load_config
from . import ADAPTERS
from .convert import BN_EPS, Conversion, convert
from .spec import anchors_per_position, settings_of, spec_from_config
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
            aspect_ratios or (0.5, 1.0, 2.0),
        )
    elif adapter.needs_config:
        spec = spec_from_config(load_config(config_file))
        ratios = spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]
        for option, stated, found in (
            ("--num-classes", num_classes, spec.MODEL.RETINANET.NUM_CLASSES),
            ("--num-anchors", num_anchors, anchors_per_position(spec)),
            ("--aspect-ratios", aspect_ratios and list(aspect_ratios), list(ratios)),
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


def write_conversion(conversion: Conversion, path: Path, config_out: Path | None = None) -> None:
    """Write the weights, and what they need of their model.

    Args:
        path: its ending tells the kind of file.
        config_out: yaml file, in the keys of Detectron2's config for other libraries too.

    Raises:
        ValueError: of an unknown ending.
        OSError: a file cannot be written.
    """
    save_weights(path, conversion.data, conversion.tensors)
    if config_out is not None:
        settings = settings_of(conversion.spec)
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
        config_out.write_text(f"# What {path.name} needs of its model.\n{text}")
