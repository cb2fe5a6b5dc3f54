"""Files of weights, read without executing what they hold and written all at once."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..engine.checkpoint import read_weights, refusal_in_one_line
from ..files import atomic_write

_ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")


def load_weights(path: Path) -> Mapping[str, Any]:
    """Tensors or arrays by name, within what their library saved around them.

    Raises:
        ValueError: the file is damaged, holds other things than arrays and plain values, or is no
            dict; or the ending of its name is unknown.
    """
    _check_ending(path)
    with refusal_in_one_line(path):
        data = read_weights(path)
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}, not tensors by name")
    return data


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
