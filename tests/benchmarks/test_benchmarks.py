"""How candidates are measured and shown; and that the subjects compare like with like, in small."""

import json

import pytest
import torch

from benchmarks import __main__, formats, inference, labeling, loss, timing, train
from benchmarks.inputs import Size
from benchmarks.timing import COPY, Row, markdown, measure

CPU = torch.device("cpu")
SIZE = Size(1, 64, 96, 3)


def test_candidates_take_turns():
    calls = []
    measure("case", {x: (lambda x=x: calls.append(x)) for x in "abc"}, CPU, runs=4)
    rounds = timing.WARM_UP_ROUNDS + 4
    assert "".join(calls[: 3 * rounds]) == "abc" * rounds


def test_saved_bytes_count_each_storage_once():
    x = torch.randn(1000, requires_grad=True)

    def candidate():
        # exp saves its result; the product saves that result twice.
        y = x.exp()
        (y * y).sum().backward()

    assert measure("case", {"it": candidate}, CPU, 1)[0].saved_bytes == 4000


def test_peak_memory_is_what_the_call_adds():
    size = 64 << 20
    held = torch.ones(size, dtype=torch.uint8)  # before the call: not counted

    def candidate():
        return torch.ones(size, dtype=torch.uint8)[:1].item() + held[0].item()

    rows = measure("case", {"it": candidate, "nothing": lambda: None}, CPU, 1)
    if rows[0].peak_bytes is None:
        pytest.skip("this system does not tell peak memory")
    assert rows[0].peak_bytes == pytest.approx(size, rel=0.1)
    assert rows[1].peak_bytes < size / 10


def test_markdown_has_ratios_to_ours_and_to_the_copy():
    rows = [
        Row("2 images", "ours", 0.030, 8_000_000, 9_500_000),
        Row("2 images", COPY, 0.010, 0, 0),
        Row("2 images", "peer", 1.5, 64_000_000, None),
    ]
    header, _, *lines = ([*map(str.strip, x.split("|"))][1:-1] for x in markdown(rows).splitlines())
    assert header[1:-1] == ["time", "× ours", "× copy", "saved for backward"]
    assert lines[0] == ["ours", "30 ms", "1.00", "3.0", "8.0 MB", "9.5 MB"]
    assert lines[2][1:] == ["1,500 ms", "50.00", "150.0", "64.0 MB", "not measured"]


def test_command_prints_tables_and_writes_json(monkeypatch, capsys, tmp_path):
    file = tmp_path / "figures.json"
    words = ["labeling", "--runs", "1", "--size", "3", "64", "96", "--json", str(file)]
    __main__.main(words)
    printed = capsys.readouterr().out
    assert "| 3 objects × 1,161 anchors   |" in printed
    figures = json.loads(file.read_text())
    assert [Row(**row).candidate for row in figures["rows"]] == ["ours", "Detectron2"]
    assert figures["machine"]["torch"] == torch.__version__
    monkeypatch.setattr(labeling, "SCALING", labeling.SIZES[:2])
    __main__.main(["labeling", "--runs", "1", "--scaling"])
    printed = capsys.readouterr().out
    assert printed.count("| ours ") == 2
    assert "Detectron2" not in printed


def test_every_loss_computes_the_same_gradient():
    ((_, losses),) = loss.cases(CPU, [Size(2, 96, 128, 5)])
    expected = losses["plain form of ours"]()
    for name in losses.keys() - {COPY, "copy into new memory"}:
        rtol = 0.2 if "bf16" in name else 1e-4  # the bf16 logits themselves are rounded
        for gradient, level in zip(losses[name](), expected, strict=True):
            torch.testing.assert_close(gradient.float(), level, rtol=rtol, atol=1e-9, msg=name)


def test_a_training_step_of_each_moves_its_weights(monkeypatch):
    steps = []
    monkeypatch.setattr(train, "train_step", lambda *arguments: steps.append(arguments))
    ((_, candidates),) = train.cases(CPU, [SIZE])
    assert list(candidates)[-2:] == ["ours, fp32", "Detectron2, fp32"]
    monkeypatch.undo()
    for model, *arguments in steps:
        before = model.backbone.fpn_output3.weight.detach().clone()
        train.train_step(model, *arguments)()
        assert not torch.equal(model.backbone.fpn_output3.weight, before)


def test_inference_of_ours_and_detectron2s_detects_the_same():
    ((_, candidates),) = inference.cases(CPU, [SIZE])
    ours, stock = (candidates[f"{x}, fp32"]()[0]["instances"] for x in ("ours", "Detectron2"))
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-3, atol=1e-4)
    assert candidates["torchvision v2, fp32"]()[0].keys() == {"boxes", "scores", "labels"}


def test_memory_formats_detect_the_same(monkeypatch):
    monkeypatch.setattr(formats, "NETWORKS", dict([*formats.NETWORKS.items()][:1]))
    models = []
    monkeypatch.setattr(formats, "train_step", lambda model, *_: models.append(model))
    (_, candidates), (_, steps) = formats.cases(CPU, [Size(2, 128, 128, 3)])
    assert list(steps) == list(candidates) and len(steps) == 4
    expected, *others = [x()[0]["instances"].scores for x in candidates.values()]
    for scores in others:
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    # The weights are laid out as the name says, and stay so.
    contiguous = [model.head.cls_score.weight.is_contiguous() for model in models]
    assert contiguous == [False, True, False, True]
