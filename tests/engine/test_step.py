"""The step of training: micro-batches, loss scaling, and the average of the weights."""

import copy
from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import make_instances, toy_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from focal_retina.engine.precision import StepTrainer
from focal_retina.losses import EmaNormalizer
from focal_retina.modeling.micro_batches import look_ahead

OHEM = "MODEL.FOCAL_RETINA.CLS_LOSS.NAME OHEM MODEL.FOCAL_RETINA.CLS_LOSS.OHEM.BATCH_SIZE 8"
SMALL = """
    MODEL.BACKBONE.NAME build_resnet_fpn_backbone_without_top_block MODEL.BACKBONE.FREEZE_AT 0
    MODEL.RESNETS.OUT_FEATURES ['res3'] MODEL.FPN.IN_FEATURES ['res3'] MODEL.FPN.OUT_CHANNELS 8
    MODEL.ANCHOR_GENERATOR.SIZES [[16,28,40]] MODEL.RETINANET.IN_FEATURES ['p3']
    MODEL.RETINANET.NUM_CONVS 1
"""
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
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


def steps(model, batches, optimizer="SGD", **options):
    """Train on the batches; the values of the event storage, each once an iteration."""
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    trainer = StepTrainer(model, batches, optimizer, **options)
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
    model = build_model(
        toy_cfg(*SMALL.split(), "MODEL.FOCAL_RETINA.NORMALIZER.MODE", mode, *loss.split())
    )
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    batches = make_batches(3, 4)
    expected = steps(model, batches, optimizer)
    found = steps(twin, batches, optimizer, accumulate=2)
    assert found.keys() == expected.keys() > {"total_loss", "loss_cls", "num_pos_anchors"}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name
    assert twin.state_dict().keys() == model.state_dict().keys()
    vectors = [parameters_to_vector(x.parameters()) for x in (start, model, twin)]
    update, difference = vectors[1] - vectors[0], vectors[2] - vectors[1]
    # AdamW divides by the gradients' size, also where that is little but rounding.
    tolerance = {"SGD": 1e-5, "AdamW": 1e-4}[optimizer]
    assert difference.norm() < tolerance * update.norm()
    assert isinstance(model.loss_normalizer, EmaNormalizer) == (mode == "ema")
    if mode == "ema":
        torch.testing.assert_close(twin.loss_normalizer.ema, model.loss_normalizer.ema)


@pytest.mark.parametrize("size", [(64, 96), (40, 150)])
def test_labels_come_before_the_feature_maps(size):
    """Levels up to P7, whose maps are smaller than a stride."""
    model = build_model(toy_cfg()).train()
    (batch,) = make_batches(1, 2, [size])
    pieces = [batch[:1], batch[1:]]
    with torch.no_grad(), EventStorage():
        found = [model(*x) for x in zip(pieces, look_ahead(model, pieces), strict=True)]
        model.loss_normalizer.ema.fill_(100)
        expected = model(batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[0][name] + found[1][name], value, rtol=1e-5, atol=0)


class Quadratic(nn.Module):
    """loss = factor · (w² + b²), a running buffer, and a count; a batch is the factor."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, factor):
        self.running.mul_(0.5).add_(factor if factor < torch.inf else 0)
        self.count += 1
        return {"loss": factor * (self.w.square().sum() + self.b.square())}


@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0.1, 0.999),
    factors=st.lists(st.sampled_from([0.5, 1.0, 2.0, torch.inf]), min_size=1, max_size=8),
)
def test_average_is_the_recursion_over_the_steps_that_were_made(decay, factors):
    """Those whose gradients overflow are left out by the loss scaler of fp16."""
    model = Quadratic()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    expected, made = None, 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for factor in factors:
        trainer = StepTrainer(model, [factor], optimizer, precision="fp16", average=average)
        trainer._write_metrics = lambda *args: None  # it refuses an infinite loss
        trainer.run_step()
        if factor == torch.inf:
            continue
        made += 1
        now = torch.cat([model.w, model.b[None], model.running]).detach().double()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    assert average.n_averaged == made
    if made:
        found = torch.cat([average.module.w, average.module.b[None], average.module.running])
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-6)
