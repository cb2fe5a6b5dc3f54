"""The loss benchmark compares like with like, and its command prints what it measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from focal_retina.benchmark import loss
from focal_retina.benchmark.loss import Size, make_inputs, our_candidates, peer_candidates
from focal_retina.benchmark.timing import COPY, measure

CPU = torch.device("cpu")
SIZE = Size(images=2, height=96, width=128, classes=5)


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(SIZE, CPU)


def test_labels_are_of_all_kinds(inputs):
    logits, labels = inputs
    assert [x.shape[:2] for x in logits] == [y.shape for y in labels]
    kinds = torch.cat(labels, dim=1).unique().tolist()
    assert kinds[0] == -1
    assert kinds[-1] == SIZE.classes
    assert len(kinds) > 3


def test_every_candidate_computes_the_same_gradient(inputs):
    candidates = {**our_candidates(*inputs), **peer_candidates(*inputs)}
    expected = candidates.pop("ours, plain form")()
    for name in (COPY, "copy into new memory"):
        for copy, x in zip(candidates.pop(name)(), inputs[0], strict=True):
            assert copy.equal(x)
    for name, candidate in candidates.items():
        is_bf16 = "bf16" in name
        for gradient, level in zip(candidate(), expected, strict=True):
            assert gradient.dtype == (torch.bfloat16 if is_bf16 else torch.float32)
            rtol = 0.2 if is_bf16 else 1e-4  # the bf16 logits themselves are rounded
            torch.testing.assert_close(gradient.float(), level, rtol=rtol, atol=1e-9, msg=name)


def test_ours_saves_the_bytes_of_the_logits_and_detectron2_several_times_as_many(inputs):
    candidates = {**our_candidates(*inputs), **peer_candidates(*inputs)}
    (rows,) = measure([("", candidates)], CPU, runs=1)
    saved = {row.candidate: row.saved_bytes for row in rows}
    num_bytes = sum(x.nbytes for x in inputs[0])
    assert saved["ours"] == num_bytes
    assert saved["ours, bf16 logits"] == num_bytes // 2
    assert saved["Detectron2 (fvcore, jit)"] > 4 * num_bytes


@pytest.fixture
def tool():
    path = Path(__file__).parents[2] / "tools" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_prints_tables_and_writes_json(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(loss, "COMPARED", (SIZE,))
    monkeypatch.setattr(loss, "SCALING", (SIZE, SIZE))
    tool.main(["loss", "--runs", "1", "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "| 2 × 96 × 128 px, K = 5 | time |" in printed
    assert "torchvision" in printed
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert len(rows) == printed.count("\n| ") - 2
    tool.main(["loss", "--runs", "1", "--scaling"])
    printed = capsys.readouterr().out
    assert printed.count("| ours |") == 2
    assert "torchvision" not in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_command_refuses_a_device_that_is_not_there(tool, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(["loss", "--device", "cuda"])
    assert error.value.code == 2
    assert "sees no CUDA device" in capsys.readouterr().err
