"""The subjects compare like with like, in small."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from benchmarks import evaluation, formats, inference, loader, loss, train
from benchmarks.inputs import Size
from benchmarks.timing import COPY, stage_seconds

CPU = torch.device("cpu")
SIZE = Size(1, 64, 96, 3)


def test_every_loss_computes_the_same_gradient():
    ((_, losses),) = loss.cases(CPU, [Size(2, 96, 128, 5)])
    expected = losses["plain form of ours"]()
    for name in losses.keys() - {COPY, "copy into new memory"}:
        rtol = 0.2 if "bf16" in name else 1e-4  # the bf16 logits themselves are rounded
        for gradient, level in zip(losses[name](), expected, strict=True):
            torch.testing.assert_close(gradient.float(), level, rtol=rtol, atol=1e-9, msg=name)


def test_a_training_step_of_each_moves_its_weights():
    for _, candidates in train.cases(CPU, [SIZE]):
        assert list(candidates)[-2:] == ["ours, fp32", "Detectron2, fp32"]
        for candidate in candidates.values():
            weight = candidate.stages[2][1].fpn_output3.weight
            before = weight.detach().clone()
            seconds = stage_seconds(candidate, rounds=1)
            assert not torch.equal(weight, before)
            assert all(seconds[name] > 0 for name, _, _ in candidate.stages)


def test_inference_of_ours_and_detectron2s_detects_the_same():
    ((_, candidates),) = inference.cases(CPU, [SIZE])
    ours, stock = (candidates[f"{x}, fp32"]()[0]["instances"] for x in ("ours", "Detectron2"))
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-3, atol=1e-4)
    assert candidates["torchvision v2, fp32"]()[0].keys() == {"boxes", "scores", "labels"}


def test_memory_formats_detect_the_same(monkeypatch):
    monkeypatch.setattr(formats, "NETWORKS", dict([*formats.NETWORKS.items()][:1]))
    (_, candidates), (_, steps) = formats.cases(CPU, [Size(2, 128, 128, 3)])
    assert list(steps) == list(candidates) and len(steps) == 4
    expected, *others = [x()[0]["instances"].scores for x in candidates.values()]
    for scores in others:
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    # The weights are laid out as the name says, and stay so.
    weights = {name: step.stages[3][1].cls_score.weight for name, step in steps.items()}
    assert [x.is_contiguous() for x in weights.values()] == [False, True, False, True]


def test_loaders_map_the_same_images():
    for _, candidates in loader.cases(CPU, [Size(2, 60, 80, 3)]):
        samples = []
        for candidate in candidates.values():
            seed_all_rng(0)
            samples.append(candidate())
        for ours, stock in zip(*samples, strict=True):
            assert ours["image"].shape == stock["image"].shape
            boxes = (x["instances"].gt_boxes.tensor for x in (ours, stock))
            assert torch.equal(*boxes)


def test_metrics_agree_and_no_evaluator_spoils_the_data_of_the_next():
    ((_, candidates),) = evaluation.cases(CPU, [evaluation.Size(3, 5, 2)])
    expected = candidates["pycocotools"]().stats
    for candidate in [*candidates.values()] * 2:
        assert candidate().stats == pytest.approx(expected, abs=1e-12)
