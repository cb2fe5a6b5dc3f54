"""Files of weights: every ending, and none that runs code."""

import numpy as np
import pytest
import torch

from focal_retina.interop.convert import Conversion
from focal_retina.interop.spec import make_spec
from focal_retina.interop.weight_files import write_conversion
from focal_retina.weight_reader import read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).t(), "a.bias": torch.ones(2).half()}


def write(path, tensors=TENSORS):
    data = {"model": tensors, "__author__": "focal_retina", "matching_heuristics": False}
    write_conversion(Conversion(tensors, make_spec({}), data), path)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pkl", ".safetensors"])
def test_what_is_written_is_read(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    write(path)
    loaded = read_weights(path)
    if ending != ".safetensors":  # it holds tensors alone
        assert loaded["__author__"] == "focal_retina" and loaded["matching_heuristics"] is False
        loaded = loaded["model"]
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(torch.as_tensor(loaded[name]), tensor)
        assert torch.as_tensor(loaded[name]).dtype == tensor.dtype
    assert isinstance(loaded["a.bias"], np.ndarray) == (ending == ".pkl")
    assert b"numpy._core" not in path.read_bytes()  # which the NumPy of Python 2 does not have


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="no bfloat16"):
        write(tmp_path / "weights.pkl", {"a": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match=r"ends in .pth, .pt, .pkl, .safetensors"):
        write(tmp_path / "weights.onnx")
    assert not list(tmp_path.iterdir())
