"""Optimizers by config."""

import copy

import pytest
import torch
from detectron2.solver import build_optimizer as build_stock_optimizer
from helpers import default_cfg
from torch import nn

from focal_retina.engine import Trainer


@pytest.fixture
def cfg():
    return default_cfg("SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BASE_LR", 0.01)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("clip", [False, True])
def test_default_steps_like_detectron2s_and_goes_on_from_its_state(cfg, model, clip):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip
    torch.manual_seed(0)
    twin = copy.deepcopy(model)
    ours, stock = Trainer.build_optimizer(cfg, model), build_stock_optimizer(cfg, twin)
    for i in range(6):
        if i == 3:
            ours = Trainer.build_optimizer(cfg, model)
            ours.load_state_dict(copy.deepcopy(stock.state_dict()))
        for x, y in zip(model.parameters(), twin.parameters(), strict=True):
            x.grad = 10 * torch.randn_like(x)
            y.grad = x.grad.clone()
        ours.step()
        stock.step()
    for x, y in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_adamw_keeps_detectron2s_groups_values_and_clipping(cfg, model):
    cfg.MODEL.FOCAL_RETINA.OPTIMIZER = "AdamW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = True, 1.0
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model[0].weight)] == cfg.SOLVER.WEIGHT_DECAY
    assert decay[id(model[1].weight)] == 0.0

    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -100.0)
    optimizer.step()
    assert all((p.grad == -1).all() for p in model.parameters())


def test_unknown_optimizer_lists_the_known_ones(cfg, model):
    cfg.MODEL.FOCAL_RETINA.OPTIMIZER = "Adam"
    with pytest.raises(ValueError, match="'Adam'; it can be SGD, AdamW"):
        Trainer.build_optimizer(cfg, model)
