"""Reading pickled weights without executing what else a pickle may hold.

Detectron2's zoo (``.pkl``) is pickled dicts of NumPy arrays, some written by Python 2. A pickle can
name any function and have it called on loading; here only those that build such dicts are found.
"""

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` as pickles of Python 3 use it, for bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return codecs.encode(text, encoding)


def _numpy_builders() -> dict[tuple[str, str], Callable[..., Any]]:
    # Taken from what NumPy itself pickles, as they have moved between its versions.
    builders: dict[tuple[str, str], Any] = {}
    for package in ("numpy.core", "numpy._core"):
        builders[f"{package}.multiarray", "_reconstruct"] = np.zeros(1).__reduce__()[0]
        builders[f"{package}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
        builders[f"{package}.numeric", "_frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]
    return builders


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1_bytes,
    **_numpy_builders(),
}


def array_globals() -> list[Any]:
    """NumPy's part of what is allowed, for ``torch.serialization.safe_globals``."""
    builders = [
        (builder, f"{module}.{name}")
        for (module, name), builder in _ALLOWED.items()
        if module.startswith("numpy")
    ]
    return [*builders, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"}]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def load_arrays(file: IO[bytes]) -> Any:
    """Unpickle dicts, lists, numbers, text and NumPy arrays.

    Args:
        file: open for reading, at the start of the pickle.

    Raises:
        pickle.UnpicklingError: it holds anything else, which was not called; or it is no pickle.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # of a damaged pickle: nearly any, by its opcodes
        raise pickle.UnpicklingError(f"it is damaged: {error}") from error
