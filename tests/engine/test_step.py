"""The step of training: micro-batches, loss scaling, and the average of the weights."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import make_instances, toy_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parameters_to_vector

from focal_retina.engine.hooks import WeightAverage
from focal_retina.engine.precision import StepTrainer

OHEM = "MODEL.FOCAL_RETINA.CLS_LOSS.NAME OHEM MODEL.FOCAL_RETINA.CLS_LOSS.OHEM.BATCH_SIZE 8"
SMALL = """
    MODEL.BACKBONE.NAME build_resnet_fpn_backbone_without_top_block MODEL.BACKBONE.FREEZE_AT 0
    MODEL.RESNETS.OUT_FEATURES ['res3'] MODEL.FPN.IN_FEATURES ['res3'] MODEL.FPN.OUT_CHANNELS 8
    MODEL.ANCHOR_GENERATOR.SIZES [[16,28,40]] MODEL.RETINANET.IN_FEATURES ['p3']
    MODEL.RETINANET.NUM_CONVS 1
"""
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.001, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=1e-4),
}


def make_batches(count, size, sizes=((64, 96),)):
    """Batches of images with 0 to 3 objects."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for i in range(count * size):
        height, width = sizes[i % len(sizes)]
        corners = torch.rand(i % 4, 2, generator=generator) * 30
        boxes = torch.cat([corners, corners + 12 + 20 * torch.rand(i % 4, 2)], dim=1)
        image = torch.randint(256, (3, height, width), generator=generator).float()
        instances = make_instances(boxes, [k % 3 for k in range(i % 4)], (height, width))
        batches.append({"image": image, "instances": instances})
    return [batches[i * size : (i + 1) * size] for i in range(count)]


def steps(model, batches, optimizer):
    """Train on the batches, the values of the event storage."""
    trainer = StepTrainer(model, batches, OPTIMIZERS[optimizer](model.parameters()))
    with EventStorage() as storage:
        for trainer.iter in range(len(batches)):
            storage.iter = trainer.iter
            trainer.run_step()
    values = {name: x.values() for name, x in storage.histories().items() if "time" not in name}
    return {name: [x for x, _ in series] for name, series in values.items()}


@pytest.mark.parametrize(
    "mode, loss, optimizer",
    [
        ("ema", "", "SGD"),
        ("ema", "", "AdamW"),
        ("image", "", "SGD"),
        ("batch", OHEM, "SGD"),
        ("image", OHEM, "SGD"),
        ("batch", f"{OHEM} MODEL.FOCAL_RETINA.CLS_LOSS.OHEM.ONE_TO_THREE True", "SGD"),
    ],
)
def test_micro_batches_update_as_the_whole_batch_does(mode, loss, optimizer):
    torch.manual_seed(0)
    words = f"{SMALL} {loss} MODEL.FOCAL_RETINA.NORMALIZER.MODE {mode}"
    model = build_model(toy_cfg(*words.split()))
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    batches = make_batches(3, 5, sizes=((64, 96), (64, 64), (96, 80)))
    expected = steps(model, batches, optimizer)
    twin.num_micro_batches = 3  # of 2, 2 and 1 images
    found = steps(twin, batches, optimizer)
    assert found.keys() == expected.keys() > {"total_loss", "loss_cls", "num_pos_anchors"}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name
    assert twin.state_dict().keys() == model.state_dict().keys()
    vectors = [parameters_to_vector(x.parameters()) for x in (start, model, twin)]
    update, difference = vectors[1] - vectors[0], vectors[2] - vectors[1]
    # AdamW divides by the gradients' size, also where that is little but rounding.
    tolerance = {"SGD": 1e-5, "AdamW": 1e-4}[optimizer]
    assert difference.norm() < tolerance * update.norm()

    if mode == "ema":
        torch.testing.assert_close(twin.loss_normalizer.ema, model.loss_normalizer.ema)


def test_micro_batches_keep_less_for_the_backward_pass():
    model, (batch,) = build_model(toy_cfg(*SMALL.split())), make_batches(1, 4)

    def kept_bytes(num_micro_batches):
        model.num_micro_batches, kept = num_micro_batches, {}
        with saved_tensors_hooks(lambda x: kept.update({x.data_ptr(): x.nbytes}), lambda x: x):
            model(batch)
        return sum(kept.values())

    weights = sum(x.nbytes for x in model.parameters())
    assert kept_bytes(4) < 0.4 * kept_bytes(1) + weights


class Quadratic(nn.Module):
    """loss = factor · w², a buffer that runs, and a count; a batch is the factor."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, factor):
        self.running.mul_(0.5).add_(factor if factor < torch.inf else 0)
        self.count += 1
        return {"loss": factor * self.w.square().sum()}


class ScaledTrainer(SimpleTrainer):
    """What a step of Detectron2's AMPTrainer does, on a CPU."""

    grad_scaler = torch.amp.GradScaler("cpu")

    def run_step(self):
        self.optimizer.zero_grad()
        self.grad_scaler.scale(self.model(next(self._data_loader_iter))["loss"]).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


@pytest.mark.parametrize("trainer_class", [ScaledTrainer, StepTrainer])
@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0.1, 0.999),
    factors=st.lists(st.sampled_from([0.5, 1.0, 2.0, torch.inf]), min_size=1, max_size=8),
)
def test_average_is_the_recursion_over_the_steps_that_were_made(trainer_class, decay, factors):
    """Those whose gradients overflow are left out by the loss scaler of fp16."""
    if trainer_class is StepTrainer:
        factors = [min(x, 3.0) for x in factors]
    model = Quadratic()
    average = WeightAverage(model, decay)
    trainer = trainer_class(model, factors, torch.optim.SGD(model.parameters(), 0.1))
    average.trainer = SimpleNamespace(_trainer=trainer)
    expected, num_steps = None, 0
    with EventStorage():
        for trainer.iter, factor in enumerate(factors):
            average.before_step()
            trainer.run_step()
            average.after_step()
            if factor < torch.inf:
                num_steps += 1
                now = torch.cat([model.w, model.running]).detach().double()
                expected = now if expected is None else decay * expected + (1 - decay) * now
    assert average.state_dict()["num_averaged"] == num_steps
    if num_steps:
        found = torch.cat([average.evaluated.w, average.evaluated.running]).detach().double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
