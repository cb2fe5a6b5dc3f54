"""Files of weights: every ending, and none that runs code."""

import os
import pickle

import numpy as np
import pytest
import torch

from focal_retina.interop.weight_files import load_weights, save_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).t(), "a.bias": torch.ones(2).half()}
DATA = {"model": TENSORS, "__author__": "focal_retina", "matching_heuristics": False}


class CallsTouch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pkl", ".safetensors"])
def test_what_is_written_is_read(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    save_weights(path, DATA, TENSORS)
    loaded = load_weights(path)
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


@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_code_in_a_file_is_not_run(tmp_path, ending):
    path, marker = tmp_path / f"weights{ending}", tmp_path / "was run"
    with open(path, "wb") as file:
        dump = torch.save if ending == ".pth" else pickle.dump
        dump({"model": CallsTouch(marker)}, file)
    with pytest.raises(ValueError, match=r"asks for \w+.system to be called, and so is not"):
        load_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
def test_damaged_files(tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    save_weights(path, DATA, TENSORS)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=str(path)):
        load_weights(path)


def test_unknown_ending_and_no_dict(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .pth, .pt, .pkl, .safetensors"):
        load_weights(tmp_path / "weights.onnx")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not tensors by name"):
        load_weights(tmp_path / "list.pth")
