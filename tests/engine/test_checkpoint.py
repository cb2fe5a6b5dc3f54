"""Checkpoints: complete or absent, checked, and read without running what is in them."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from helpers import Call
from safetensors.torch import save_file
from torch import nn

from focal_retina.engine.checkpoint import SafeCheckpointer, is_intact
from focal_retina.files import atomic_write


def make_model(value=0.0):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, value)
    return model


@pytest.fixture
def save(tmp_path):
    """Save a checkpoint whose weights, and those of a second module, are its iteration."""

    def call(iteration, name=None, checkpointer_class=SafeCheckpointer):
        model, state = make_model(iteration), make_model(iteration)
        checkpointer = checkpointer_class(model, str(tmp_path), trainer=state)
        checkpointer.save(name or f"model_{iteration:07d}", iteration=iteration)

    return call


def resume(folder, checkpointer_class=SafeCheckpointer):
    """(weight, that of the second module, what was left over) after a resume."""
    model, state = make_model(-1.0), make_model(-1.0)
    checkpointer = checkpointer_class(model, str(folder), trainer=state)
    rest = checkpointer.resume_or_load("", resume=True)
    return model.weight[0, 0].item(), state.weight[0, 0].item(), rest["iteration"]


@pytest.mark.parametrize("reader", [SafeCheckpointer, DetectionCheckpointer])
@pytest.mark.parametrize("writer", [SafeCheckpointer, DetectionCheckpointer])
def test_what_one_saves_the_other_resumes(save, tmp_path, writer, reader):
    save(3, checkpointer_class=writer)
    assert resume(tmp_path, reader) == (3, 3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000003.pth"]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "missing"])
def test_damaged_last_checkpoint_gives_way_to_the_one_before(save, tmp_path, caplog, damage):
    for iteration in (2, 5, 8):
        save(iteration)
    save(11, "model_final")
    for name, value in (("model_final.pth", 11), ("model_0000008.pth", 8)):
        path = tmp_path / name
        content = bytearray(path.read_bytes())
        content[content.index(np.full(2, value, np.float32).tobytes())] ^= 1
        if damage == "missing":
            path.unlink()
        else:
            size = {"truncated": len(content) - 30, "empty": 0}.get(damage)
            path.write_bytes(content if damage == "one bit" else path.read_bytes()[:size])
    assert resume(tmp_path) == (5, 5, 5)
    named = "last_checkpoint names no" if damage == "missing" else "model_final.pth is damaged"
    assert named in caplog.text


def test_checkpoints_after_the_last_belong_to_another_run(save, tmp_path):
    for iteration in (20, 2, 5):
        save(iteration)
    (tmp_path / "model_0000005.pth").write_bytes(b"")
    assert resume(tmp_path) == (2, 2, 2)
    (tmp_path / "model_0000002.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        resume(tmp_path)


@pytest.mark.parametrize("tag", [None, b"", b"model_000", b"\xff\x00\x9f", b"../a/model_final.pth"])
def test_a_lost_or_wrong_tag_never_starts_anew(save, tmp_path, tag, caplog):
    """Nor does it lead out of the folder."""
    for iteration in (5, 8):
        save(iteration)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model_final.pth").write_bytes((tmp_path / "model_0000005.pth").read_bytes())
    path = tmp_path / "last_checkpoint"
    path.unlink() if tag is None else path.write_bytes(tag)
    assert SafeCheckpointer(nn.Identity(), str(tmp_path)).has_checkpoint()
    assert resume(tmp_path) == (8, 8, 8)
    assert "last_checkpoint names no checkpoint of its folder" in caplog.text


def test_a_training_that_starts_anew_has_no_checkpoint(save, tmp_path):
    for name in ("model_0000002", "model_final"):
        save(2, name=name)
    checkpointer = SafeCheckpointer(nn.Identity(), str(tmp_path))
    checkpointer.start_anew()
    assert not checkpointer.has_checkpoint() and checkpointer.last_intact() is None
    left = {"last_checkpoint", "model_0000002.pth", "model_final_before.pth"}
    assert {x.name for x in tmp_path.iterdir()} == left
    save(1)
    assert resume(tmp_path) == (1, 1, 1)


def test_a_flipped_bit(save, tmp_path):
    """It is noticed, or changes nothing: anywhere in a tensor's entry of the table of contents, and
    at places all over the file."""
    save(2)
    path = tmp_path / "model_0000002.pth"
    content = path.read_bytes()
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    entry = range(8 * start, 8 * content.index(b"PK", start + 4))
    for position in (*entry, *range(0, 8 * len(content), 131)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        if is_intact(path):
            assert resume(tmp_path) == (2, 2, 2)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".legacy.pth"])
def test_a_malicious_file_does_not_run(tmp_path, suffix):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    data = {"model": {"weight": Call(os.mkdir, (str(trace),))}, "__author__": "nobody"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization="legacy" not in suffix)
    with pytest.raises(ValueError, match=f"{path.name} .*mkdir.* not read"):
        SafeCheckpointer(make_model()).load(str(path))
    assert not trace.exists()


def test_reads_what_detectron2_reads(tmp_path):
    arrays = {"weight": np.full((1, 2), 7.0, np.float32), "bias": np.zeros(1, np.float32)}
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    zoo = {"model": arrays, "__author__": "Detectron2"}
    for protocol in range(2, 6):  # Python 2 wrote 2
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(zoo, protocol))
    torch.save({"model": tensors}, tmp_path / "a.pth")
    torch.save({"model": collections.OrderedDict(arrays)}, tmp_path / "numpy.pth")
    torch.save(tensors, tmp_path / "bare.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        model = make_model()
        SafeCheckpointer(model).load(str(path))
        assert model.weight.tolist() == [[7.0, 7.0]], path


def test_caffe2_weights_are_matched_by_name(tmp_path):
    """As Detectron2 does: names of Detectron, momentum left out."""
    blobs = {
        "conv1_w": np.ones((4, 3, 7, 7), np.float32),
        "conv1_w_momentum": np.zeros((4, 3, 7, 7), np.float32),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, 2))
    model = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 7, bias=False)})})
    SafeCheckpointer(model).load(str(path))
    assert (model["stem"]["conv1"].weight == 1).all()
