"""Files of weights: every ending, and none that runs code."""

import numpy as np
import pytest
import torch

from focal_retina.interop.weight_files import save_weights
from focal_retina.weight_reader import read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).t(), "a.bias": torch.ones(2).half()}
DATA = {"model": TENSORS, "__author__": "focal_retina", "matching_heuristics": False}


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pkl", ".safetensors"])
def test_what_is_written_is_read(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    save_weights(path, DATA, TENSORS)
    loaded = read_weights(path)
    if ending != ".safetensors":  # it holds tensors alone
        assert loaded["__author__"] == "focal_retina" and loaded["matching_heuristics"] is False
        loaded = loaded["model"]
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(torch.as_tensor(loaded[name]), tensor)
        assert torch.as_tensor(loaded[name]).dtype == tensor.dtype
    assert isinstance(loaded["a.bias"], np.ndarray) == (ending == ".pkl")


def test_bfloat16_needs_another_kind_of_file(tmp_path):
    weights = {"a": torch.ones(2, dtype=torch.bfloat16)}
    with pytest.raises(ValueError, match="no bfloat16"):
        save_weights(tmp_path / "weights.pkl", weights, weights)
    assert not (tmp_path / "weights.pkl").exists()


def test_unknown_ending(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .pth, .pt, .pkl, .safetensors"):
        save_weights(tmp_path / "weights.onnx", DATA, TENSORS)
