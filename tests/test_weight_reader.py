"""Files of weights: what is in them is read, and never run."""

import contextlib
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import Call
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from focal_retina.weight_reader import check_named_tensors, read_weights

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4")[::2],
    np.zeros((0, 3), np.float16),
    np.array(True),
]
RECONSTRUCT = np.zeros(0).__reduce__()[0]


def write(path, data):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_numbers_are_read(protocol, tmp_path):
    data = {"arrays": ARRAYS, "number": np.float64(0.5), "inner": OrderedDict(a=(1, "ä", b"\xff"))}
    torch.save(data, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol))
    for path in (tmp_path / "a.pth", tmp_path / "a.pkl"):
        read = read_weights(path)
        assert read["inner"] == data["inner"] and read["number"] == 0.5
        for found, array in zip(read["arrays"], ARRAYS, strict=True):
            assert type(found) is np.ndarray and found.dtype.isnative and found.flags.writeable
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
@pytest.mark.parametrize(
    "forged",
    [
        # A structured type whose one field lies far outside, and an array of pointers
        Call(np.dtype, ("V8",), (3, "<", None, ("f",), {"f": (np.dtype("f4"), 1 << 40)}, 8, 1, 0)),
        Call(np.dtype, ("f4",), (3, "<", (np.dtype("O"), (4,)), None, None, 1 << 30, 1, 63)),
        Call(np.dtype, ("O",)),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9,), np.dtype("f4"), 0, b"")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1,), np.dtype("f4"), 0, b"12")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), 0, [1])),
        Call(np.float64(0).__reduce__()[0], (np.dtype("O"), b"12345678")),
    ],
)
def test_forged_arrays(tmp_path, name, forged):
    """NumPy's own __setstate__ of types and arrays would follow them through memory."""
    path = write(tmp_path / name, {"a": forged})
    with pytest.raises(ValueError, match=f"{path} is no checkpoint, or damaged"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@given(st.data())
def test_damage_is_one_line(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("damage") / f"weights{suffix}"
    write(path, {"model": {"a": ARRAYS[0], "b": ARRAYS[1]}, "class_rows": 3})
    if suffix == ".safetensors":
        save_file({"a": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    with contextlib.suppress(ValueError):
        assert isinstance(read_weights(path), dict)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([np.ones(1)], "holds a list, not tensors by name"),
        (None, "holds a NoneType, not tensors by name"),
        ({"model": None}, "holds a NoneType, not tensors by name"),
        ({"model": {1: np.ones(1)}}, "has the key 1, and tensors have names"),
        ({"model": {"a": "text"}}, "a is a str, not a tensor"),
    ],
)
def test_what_is_no_dict_of_tensors(tmp_path, suffix, data, message):
    path = write(tmp_path / f"a{suffix}", data)
    with pytest.raises(ValueError, match=f"{path}:? {message}"):
        check_named_tensors(path, read_weights(path)["model"])
