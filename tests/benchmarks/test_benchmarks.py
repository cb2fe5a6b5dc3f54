"""How candidates are measured and shown; and that the subjects compare like with like, in small."""

import pytest
import torch

from benchmarks import __main__, loss, models, timing
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
    if rows[0].peak_bytes != rows[0].peak_bytes:
        pytest.skip("this system does not tell peak memory")
    assert rows[0].peak_bytes == pytest.approx(size, rel=0.1)
    assert rows[1].peak_bytes < size / 10


def test_markdown_has_ratios_to_ours():
    rows = [Row("2 images", "ours", 0.030, 8_000_000, 9e6), Row("2 images", "peer", 1.5, 0, 0.0)]
    header, _, *lines = ([*map(str.strip, x.split("|"))][1:-1] for x in markdown(rows).splitlines())
    assert header == ["2 images", "time", "× ours", "saved for backward", "peak extra memory"]
    assert lines[0] == ["ours", "30.00 ms", "1.00", "8.0 MB", "9.0 MB"]
    assert lines[1] == ["peer", "1,500 ms", "50.00", "0.0 MB", "0.0 MB"]


def test_command_prints_tables(monkeypatch, capsys):
    __main__.main(["labeling", "--runs", "1", "--size", "3", "64", "96"])
    printed = capsys.readouterr().out
    assert "| 3 objects × 1,161 anchors   |" in printed and "Detectron2" in printed
    monkeypatch.setitem(__main__.SCALING, "labeling", __main__.SCALING["labeling"][:2])
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
    monkeypatch.setattr(models, "train_step", lambda *arguments: steps.append(arguments))
    ((_, candidates),) = models.train(CPU, [SIZE])
    assert list(candidates)[-2:] == ["ours, fp32", "Detectron2, fp32"]
    monkeypatch.undo()
    for model, *arguments in steps:
        before = model.backbone.fpn_output3.weight.detach().clone()
        models.train_step(model, *arguments)()
        assert not torch.equal(model.backbone.fpn_output3.weight, before)


def test_inference_of_ours_and_detectron2s_detects_the_same():
    ((_, candidates),) = models.inference(CPU, [SIZE])
    ours, stock = (candidates[f"{x}, fp32"]()[0]["instances"] for x in ("ours", "Detectron2"))
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-3, atol=1e-4)


def test_memory_formats_detect_the_same(monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict([*models.NETWORKS.items()][:1]))
    trained = []
    monkeypatch.setattr(models, "train_step", lambda model, *_: trained.append(model))
    (_, candidates), (_, steps) = models.formats(CPU, [Size(2, 128, 128, 3)])
    assert list(steps) == list(candidates) and len(steps) == 4
    expected, *others = [x()[0]["instances"].scores for x in candidates.values()]
    for scores in others:
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    # The weights are laid out as the name says, and stay so.
    contiguous = [model.head.cls_score.weight.is_contiguous() for model in trained]
    assert contiguous == [False, True, False, True]
