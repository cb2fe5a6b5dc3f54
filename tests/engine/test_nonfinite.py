"""Losses and gradients that are not finite: what stops, what is dumped, what goes on."""

import json

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from helpers import make_instances
from torch import nn

from focal_retina.engine.nonfinite import NonFiniteGuard, read_batch
from focal_retina.engine.precision import AutocastTrainer, StepTrainer


class Model(nn.Module):
    """loss = mean over the batch of scale * w * image, with noise and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch):
        self.calls += 1
        images = torch.stack([x["image"] for x in batch]).to(self.calls.device)
        outputs = self.linear(images) + 0.1 * torch.randn(())
        return {"loss": outputs.float().mean(), "extra": torch.zeros(())}


class SteepModel(Model):
    """A finite loss with an infinite gradient: the square root at 0."""

    def forward(self, batch):
        loss = super().forward(batch)["loss"]
        return {"loss": (loss - loss.detach()).sqrt()}


def make_batch(value=1.0):
    x = {"file_name": "street/7.jpg", "image_id": 7, "annotations": [{"not": "dumped"}]}
    x["image"] = torch.full((4,), value)
    x["instances"] = make_instances([[0, 1, 2, 3]], [1], (4, 6))
    return [x, {**x, "image_id": "eight"}]


def train(model, batches, tmp_path, trainer_class=SimpleTrainer, **options):
    """Steps over the batches, up to an error; (trainer, error or None)."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    trainer = trainer_class(model, batches, optimizer)
    guard = NonFiniteGuard(model, config="A: 1\n", folder=tmp_path / "nonfinite", **options)
    trainer.register_hooks([guard])
    with EventStorage() as storage:
        for trainer.iter, _ in enumerate(batches):
            storage.iter = trainer.iter
            try:
                trainer.run_step()
            except FloatingPointError as error:
                return trainer, error
    return trainer, None


@pytest.mark.parametrize("trainer_class", [SimpleTrainer, AutocastTrainer])
def test_a_loss_that_is_not_finite_leaves_a_dump_of_before_the_step(tmp_path, trainer_class):
    model = Model()
    batches = [make_batch(), make_batch(torch.inf)]
    _, error = train(model, batches, tmp_path, trainer_class)
    folder = tmp_path / "nonfinite" / "iter_0000001"
    assert "loss is not finite at iteration 1" in str(error)
    assert f"-m focal_retina replay {folder}" in str(error)

    report = json.loads((folder / "report.json").read_text())
    assert report["iteration"] == 1
    assert report["losses"]["loss"] == torch.inf and report["losses"]["extra"] == 0
    assert [x["image_id"] for x in report["images"]] == [7, "eight"]
    assert report["images"][0]["file_name"] == "street/7.jpg"
    assert report["images"][0]["boxes"] == [[0, 1, 2, 3]]
    assert (folder / "config.yaml").read_text() == "A: 1\n"

    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    torch.testing.assert_close(weights["linear.weight"], torch.full((1, 4), 0.4))  # one step
    assert weights["calls"] == 1  # not the 2 of after the second forward pass

    dump = read_batch(folder)
    assert dump["autocast"] == (None if trainer_class is SimpleTrainer else "bfloat16")
    (first, second), expected = dump["batch"], batches[1][0]
    assert torch.equal(first["image"], expected["image"]) and second["image_id"] == "eight"
    assert first["instances"].image_size == (4, 6)
    assert torch.equal(first["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
    assert first["instances"].gt_classes.tolist() == [1]

    # The state of the generators is that before the forward pass: two draws after the seed.
    torch.manual_seed(0)
    torch.randn(1)
    assert torch.equal(dump["rng"]["torch"], torch.get_rng_state())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path):
    model = SteepModel()
    _, error = train(model, [make_batch()], tmp_path)
    assert "a gradient is not finite at iteration 0 (loss 0)" in str(error)
    assert (model.linear.weight == 0.5).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_leaves_out_the_step_and_the_error_comes_in_the_next(tmp_path):
    model = SteepModel().cuda()
    trainer, error = train(model, [make_batch()] * 3, tmp_path, StepTrainer)
    assert "a gradient is not finite at iteration 0 (loss 0)" in str(error)
    assert trainer.iter == 1 and (model.linear.weight == 0.5).all()


def test_gradients_are_looked_at_every_few_iterations(tmp_path):
    model = SteepModel()
    _, error = train(model, [make_batch()] * 3, tmp_path, gradient_period=0)
    # Not seen in iteration 0; the weights and with them the next loss are not finite.
    assert "a loss is not finite at iteration 1" in str(error)


def test_infinite_gradients_are_normal_under_a_gradient_scaler(tmp_path):
    class ScalingTrainer(SimpleTrainer):
        grad_scaler = object()

    _, error = train(SteepModel(), [make_batch()], tmp_path, ScalingTrainer)
    assert error is None
    _, error = train(Model(), [make_batch(torch.nan)], tmp_path, ScalingTrainer)
    assert "a loss is not finite" in str(error)


def test_nothing_is_written_and_nothing_changes_while_all_is_finite(tmp_path):
    batches = [make_batch(), make_batch(2.0), make_batch(-1.0)]
    guarded, plain = Model(), Model()
    _, error = train(guarded, batches, tmp_path)
    assert error is None and not (tmp_path / "nonfinite").exists()
    torch.manual_seed(0)
    trainer = SimpleTrainer(plain, batches, torch.optim.SGD(plain.parameters(), 0.1))
    with EventStorage():
        for trainer.iter in range(3):
            trainer.run_step()
    assert torch.equal(guarded.linear.weight, plain.linear.weight)
