"""Files of weights, read without executing what they hold and written all at once."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..engine.checkpoint import describe_refusal, read_torch_file
from ..engine.restricted_pickle import load_arrays
from ..files import atomic_write


def _load_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return load_arrays(file)


def _save_torch(data: Mapping[str, Any], tensors: dict[str, Tensor], file: IO[bytes]) -> None:
    torch.save(data, file)


def _save_pickle(data: Mapping[str, Any], tensors: dict[str, Tensor], file: IO[bytes]) -> None:
    pickle.dump(_as_arrays(data), file, protocol=2)  # Detectron runs on Python 2


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        raise ValueError("NumPy, and so a .pkl file, has no bfloat16: write another kind of file")
    return value.numpy() if isinstance(value, Tensor) else value


def _save_safetensors(data: Mapping[str, Any], tensors: dict[str, Tensor], file: IO[bytes]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    file.write(safetensors.torch.save(contiguous))


_Save = Callable[[Mapping[str, Any], dict[str, Tensor], IO[bytes]], None]
_BY_ENDING: dict[str, tuple[Callable[[Path], Any], _Save]] = {
    ".pth": (read_torch_file, _save_torch),
    ".pt": (read_torch_file, _save_torch),
    ".pkl": (_load_pickle, _save_pickle),
    ".safetensors": (safetensors.torch.load_file, _save_safetensors),
}


def _check_ending(path: Path) -> None:
    """
    Raises:
        ValueError: the file's name ends in nothing that is known.
    """
    if path.suffix not in _BY_ENDING:
        raise ValueError(f"{path}: the name of a file of weights ends in {', '.join(_BY_ENDING)}")


def load_weights(path: Path) -> Mapping[str, Any]:
    """Tensors or arrays by name, within what their library saved around them.

    Raises:
        ValueError: it is damaged, holds other things than arrays and plain values, or is no dict.
    """
    _check_ending(path)
    try:
        data = _BY_ENDING[path.suffix][0](path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} {describe_refusal(error)}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}, not tensors by name")
    return data


def save_weights(path: Path, data: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``data``, or of it the tensors alone where the file's kind holds nothing else.

    Args:
        path: its ending tells how.
    """
    _check_ending(path)
    with atomic_write(path) as file:
        _BY_ENDING[path.suffix][1](data, tensors, file)
