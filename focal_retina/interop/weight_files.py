"""Files of weights: converted, read without executing what they hold, written all at once."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from ..engine import load_config
from ..files import atomic_write
from ..weight_reader import read_weights
from . import ADAPTERS
from .convert import BN_EPS, Conversion, convert
from .spec import settings_of, spec_from_config

_ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")


def convert_file(
    path: Path,
    source: str,
    target: str,
    *,
    config_file: Path | None = None,
    bn_eps: float = BN_EPS,
    **stated: Any,
) -> Conversion:
    """Read a file of weights and convert what it holds; a ValueError if it is not what is stated.

    ``source`` and ``target`` are names in ``ADAPTERS``. ``config_file``, where the source is
    Detectron2, says what the weights mean; else ``stated``, see :meth:`.adapter.Adapter.spec_of`.
    """
    adapter = ADAPTERS[source]
    if config_file is None:
        spec = adapter.spec_of(**stated)
    elif not adapter.needs_config:
        raise ValueError(f"--config-file is for weights from detectron2, not from {source}")
    elif stated:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in stated)
        raise ValueError(f"{config_file} says what the weights mean: leave out {options}")
    else:
        spec = spec_from_config(load_config(config_file))
    _check_ending(path)
    data = read_weights(path)
    try:
        return convert(data, adapter, ADAPTERS[target], spec, bn_eps=bn_eps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_conversion(conversion: Conversion, path: Path, config_out: Path | None = None) -> None:
    """Write the weights, and to ``config_out`` what they need of their model: a yaml in the keys of
    Detectron2's config, for other libraries too."""
    save_weights(path, conversion.data, conversion.tensors)
    if config_out is not None:
        settings = settings_of(conversion.spec)
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
        config_out.write_text(f"# What {path.name} needs of its model.\n{text}")


def save_weights(path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``data``; of it the tensors alone to ``.safetensors``, which holds nothing else."""
    _check_ending(path)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            file.write(safetensors.torch.save(contiguous))
        elif path.suffix == ".pkl":
            pickle.dump(_as_arrays(data), file, protocol=2)  # Detectron runs on Python 2
        else:
            torch.save(data, file)


def _check_ending(path: Path) -> None:
    if path.suffix not in _ENDINGS:
        raise ValueError(f"{path}: the name of a file of weights ends in {', '.join(_ENDINGS)}")


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        raise ValueError("NumPy, and so a .pkl file, has no bfloat16: write another kind of file")
    return value.numpy() if isinstance(value, Tensor) else value
