"""What the benchmarks of whole detectors compare does what it says, in small."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from focal_retina.benchmark import end2end, inference, loader, train
from focal_retina.benchmark.loss import Size
from focal_retina.benchmark.stages import Stage, StagedCandidate, stage_seconds
from focal_retina.benchmark.timing import Row, markdown

CPU = torch.device("cpu")
SIZE = Size(1, 64, 96, 3)


def test_stages_are_added_up_and_put_back():
    class Work:
        calls = 0

        def part(self):
            self.calls += 1

    work = Work()
    candidate = StagedCandidate(lambda: [work.part(), work.part()], [Stage("part", work, "part")])
    seconds = stage_seconds(candidate, CPU, runs=2)
    assert list(seconds) == ["part", "rest"]
    assert work.calls == 4
    assert "part" not in vars(work)
    row = Row("case", "ours", 1.0, 0, None, {"part": 0.25})
    assert "250 ms" in markdown([row])


@pytest.mark.parametrize("subject", [train, end2end])
def test_a_training_step_of_each_moves_its_weights(subject):
    cases = subject.comparison_cases(CPU, SIZE)  # holds the files
    title, candidates = next(cases)
    assert "64 × 96" in title
    assert list(candidates) == ["ours, bf16", "ours, fp32", "Detectron2, fp32"]
    for candidate in candidates.values():
        backbone = next(s.owner for s in candidate.stages if s.name == "backbone")
        weight = backbone.fpn_output3.weight
        before = weight.detach().clone()
        seconds = stage_seconds(candidate, CPU, runs=1)
        assert not torch.equal(weight, before)
        assert all(seconds[stage.name] > 0 for stage in candidate.stages)


def test_inference_of_ours_and_detectron2s_detects_the_same():
    ((_, candidates),) = inference.comparison_cases(CPU, SIZE)
    ours, stock = (
        candidates[name]()[0]["instances"] for name in ("ours, fp32", "Detectron2, fp32")
    )
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-3, atol=1e-4)
    (boxes,) = candidates["torchvision v2, fp32"]()
    assert boxes.keys() == {"boxes", "scores", "labels"}


def test_loader_candidates_map_the_same_images():
    for title, candidates in loader.comparison_cases(CPU, Size(2, 60, 80, 3)):
        assert "pixels differ by" in title
        samples = []
        for candidate in candidates.values():
            seed_all_rng(0)
            samples.append(candidate())
        for ours, stock in zip(*samples, strict=True):
            assert ours["image"].shape == stock["image"].shape
            assert torch.equal(
                ours["instances"].gt_boxes.tensor, stock["instances"].gt_boxes.tensor
            )
