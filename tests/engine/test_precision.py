"""Which arithmetic a training step runs in."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from focal_retina import add_focal_retina_config
from focal_retina.engine.precision import AutocastTrainer, build_step_trainer


class Model(nn.Module):
    """loss = mean(w * x), and a record of the product's dtype."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        self.dtypes = []

    def forward(self, batch):
        y = self.linear(batch)
        self.dtypes.append(y.dtype)
        return {"loss": y.float().mean()}


def make_trainer(enabled, precision, device="cpu"):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.MODEL.DEVICE = device
    cfg.SOLVER.AMP.ENABLED = enabled
    cfg.MODEL.FOCAL_RETINA.PRECISION = precision
    torch.manual_seed(0)
    model = Model()
    loader = [torch.ones(2, 4)] * 3
    return build_step_trainer(cfg, model, loader, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize(
    "enabled, precision, trainer_class, dtype",
    [
        (False, "bf16", SimpleTrainer, torch.float32),
        (True, "fp32", SimpleTrainer, torch.float32),
        (True, "bf16", AutocastTrainer, torch.bfloat16),
    ],
)
def test_step_runs_in_the_precision_of_the_config(enabled, precision, trainer_class, dtype):
    trainer = make_trainer(enabled, precision)
    assert type(trainer) is trainer_class
    before = trainer.model.linear.weight.detach().clone()
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    assert trainer.model.dtypes == [dtype]
    # d mean(w·x) / dw = x, with learning rate 0.1
    torch.testing.assert_close(trainer.model.linear.weight, before - 0.1)
    assert trainer.model.linear.weight.dtype == torch.float32
    assert storage.latest()["total_loss"][0] == pytest.approx(before.sum().item(), abs=1e-2)


def test_fp16_needs_cuda_and_says_so():
    with pytest.raises(ValueError, match="PRECISION bf16"):
        make_trainer(True, "fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_is_detectron2s_amp():
    assert type(make_trainer(True, "fp16", "cuda")) is AMPTrainer


def test_unknown_precision_lists_the_known_ones():
    with pytest.raises(ValueError, match="int4.*fp32, bf16, fp16"):
        make_trainer(True, "int4")


def test_non_finite_loss_stops_the_training():
    trainer = make_trainer(True, "bf16")
    with torch.no_grad():
        trainer.model.linear.weight.fill_(torch.inf)
    trainer.iter = 0
    with EventStorage(), pytest.raises(FloatingPointError, match="iteration=0"):
        trainer.run_step()
