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
from .adapter import DETECTRON2
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
    adapter, is_ours = ADAPTERS[source], ADAPTERS[source] is DETECTRON2
    if is_ours != (config_file is not None) or (is_ours and stated):
        raise ValueError(
            "weights from detectron2 need the model's config, by --config-file and no more; "
            "weights from others need --num-classes, --num-anchors or --aspect-ratios instead"
        )
    if config_file:
        spec = spec_from_config(load_config(config_file, ["MODEL.DEVICE", "cpu"]))
    else:
        spec = adapter.spec_of(**stated)
    data = read_weights(path)
    try:
        return convert(data, adapter, ADAPTERS[target], spec, bn_eps=bn_eps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_conversion(conversion: Conversion, path: Path, config_out: Path | None = None) -> None:
    """Write the weights (to ``.safetensors`` the tensors alone, as it holds nothing else), and to
    ``config_out`` what they need of their model: a yaml in the keys of Detectron2's config, for
    other libraries too."""
    if path.suffix not in _ENDINGS:
        raise ValueError(f"{path}: the name of a file of weights ends in {', '.join(_ENDINGS)}")
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            contiguous = {name: x.contiguous() for name, x in conversion.tensors.items()}
            file.write(safetensors.torch.save(contiguous))
        elif path.suffix == ".pkl":
            pickled = pickle.dumps(_as_arrays(conversion.data), protocol=2)
            # Detectron's NumPy, of Python 2, has this module under its old name alone.
            file.write(pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
        else:
            torch.save(conversion.data, file)
    if config_out is not None:
        settings = settings_of(conversion.spec)
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
        config_out.write_text(f"# What {path.name} needs of its model.\n{text}")


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        raise ValueError("NumPy, and so a .pkl file, has no bfloat16: write another kind of file")
    return value.numpy() if isinstance(value, Tensor) else value
