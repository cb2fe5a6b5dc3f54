"""Files of weights, read without running what they hold.

A pickle can name any function and have it called on loading. Here it can name those that make
arrays of numbers, and even these are not NumPy's: ``numpy.dtype.__setstate__`` takes pointers and
sizes from the file as they are. A file holds tensors, arrays, and plain values.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

_NUMERIC = {np.dtype(code).str[1:] for code in np.typecodes["AllInteger"] + "?efd"}  # such as f4


class RefusedError(ValueError):
    """The file is whole, and asks for something to be called."""


def read_weights(path: str | PathLike, *, mmap: bool = False) -> dict[str, Any]:
    """The dict in a file, by its ending of ``.safetensors``, ``.pkl``, or else ``torch.save``.

    ``mmap`` leaves the tensors of a ``torch.save`` file on the disk until they are used.

    Raises:
        OSError: the file can't be opened.
        RefusedError: it holds anything but tensors, arrays and plain values. Nothing was called.
        ValueError: it is damaged.
    """
    try:
        data = _read(Path(path), mmap)
    except OSError:
        raise
    # Of a damaged file nearly any; torch's own text advises to read it anyhow.
    except Exception as error:
        if match := re.search(r"(?:GLOBAL|asks for) `?([\w.]+)", str(error)):
            raise RefusedError(
                f"{path} asks for {match[1]} to be called, and so is not read: weights are arrays "
                "and plain values alone"
            ) from error
        raise ValueError(f"{path} is no checkpoint, or damaged") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not tensors by name")
    return data


def _read(path: Path, mmap: bool) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        with open(path, "rb") as file:
            return _with_arrays(_ArrayUnpickler(file, encoding="latin1").load())
    allowed: list[Any] = [(function, name) for name, function in _GLOBALS.items()]
    with torch.serialization.safe_globals(allowed):
        return _with_arrays(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))


def check_named_tensors(path: str | PathLike, data: Any) -> None:
    """A ValueError if ``data``, of the file, is anything but tensors or arrays by name."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}, not tensors by name")
    for name, value in data.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} has the key {name!r}, and tensors have names")
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, not a tensor")


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle."""

    def __init__(self, code: str, *_: Any):
        if code not in _NUMERIC:
            raise pickle.UnpicklingError(f"arrays of {code!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("arrays of records")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle; its state is (version, shape, dtype, whether it is
    in Fortran's order, bytes)."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _from_bytes(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # str: of Python 2
    array = np.ndarray(shape, dtype.value, buffer=data, order=order)
    if array.nbytes != len(data):
        raise pickle.UnpicklingError(f"{len(data)} bytes of an array of {array.nbytes}")
    return array.astype(array.dtype.newbyteorder("="))  # a copy


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` as pickles of Python 3 use it, for bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text as {encoding!r}")
    return text.encode(encoding)


def _with_arrays(value: Any) -> Any:
    """With arrays in the place of what stood for them."""
    if isinstance(value, (_Array, _Dtype)):
        return value.value
    if isinstance(value, dict):
        for key in value:
            value[key] = _with_arrays(value[key])
    return type(value)(map(_with_arrays, value)) if type(value) in (list, tuple) else value


_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1_bytes,
    "builtins.bytes": lambda: b"",  # protocol 2 has no other way to write it
    "__builtin__.bytes": lambda: b"",
}
for _module in ("numpy.core", "numpy._core"):  # NumPy has moved them
    _GLOBALS[f"{_module}.multiarray._reconstruct"] = lambda *_: _Array()
    _GLOBALS[f"{_module}.multiarray.scalar"] = lambda dtype, data: _from_bytes(data, dtype, ())[()]
    _GLOBALS[f"{_module}.numeric._frombuffer"] = _from_bytes


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _GLOBALS[f"{module}.{name}"]
