"""focal-retina replay: a dumped batch gives the same losses again, and tells where it broke."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from helpers import make_batch, toy_cfg

from focal_retina.engine import Trainer
from focal_retina.engine.nonfinite import NonFiniteGuard, losses_by_level, replay

NUM_LEVELS = 5


def make_trainer(folder, batch):
    cfg = toy_cfg()
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    trainer = SimpleTrainer(model, [batch] * 3, torch.optim.SGD(model.parameters(), 1e-9))
    guard = NonFiniteGuard(model, cfg.dump(), folder)
    trainer.register_hooks([guard])
    trainer.iter = 0
    return trainer, guard


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """(dump, error) of a training whose third step meets a weight that is NaN."""
    folder = tmp_path_factory.mktemp("run")
    batch = [{**make_batch()[0], "file_name": "a/b.jpg", "image_id": 3}]
    trainer, _ = make_trainer(folder, batch)
    with EventStorage() as storage:
        for trainer.iter in range(2):
            trainer.run_step()
            storage.step()
        with torch.no_grad():
            trainer.model.backbone.fpn_output4.bias[3] = torch.nan
        trainer.iter = 2
        with pytest.raises(FloatingPointError) as error:
            trainer.run_step()
    return folder / "iter_0000002", error.value


def test_replays_and_names_the_first_module(dumped, command):
    folder, error = dumped
    assert str(folder) in str(error)
    status, output, _ = command("replay", folder)
    assert status == 0
    assert "a/b.jpg (image id 3)" in output
    assert "weights that are not finite before the step: backbone.fpn_output4.bias" in output
    assert "first activation that is not finite: backbone.fpn_output4 (Conv2d): 16 of" in output
    assert "loss_cls nan" in output
    table = output[output.index("level  ") :].splitlines()
    assert len(table) >= 1 + NUM_LEVELS
    finite = ["nan" not in line for line in table[1 : 1 + NUM_LEVELS]]
    assert finite[0] and not finite[1]  # P3 is made before P4's convolution, not of its output


def test_levels_add_up_to_the_losses_of_the_step(tmp_path):
    """Of a dump of a finite step: the same losses as in training, to the last digit shown."""
    batch = make_batch()
    trainer, guard = make_trainer(tmp_path, batch)
    model = trainer.model
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    guard._dump(guard._current)
    lines = list(replay(next(tmp_path.iterdir())))
    assert f"loss_cls {losses['loss_cls'].item():.9g}" in lines
    assert f"loss_box_reg {losses['loss_box_reg'].item():.9g}" in lines
    assert "first activation that is not finite: none" in lines
    levels = losses_by_level(model.eval(), batch)
    for name, loss in losses.items():
        total = sum(level[name] for level in levels)
        assert total == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "files, what",
    [
        ({}, "is no dump of a batch"),
        ({"config.yaml": "MODEL: [1"}, "config.yaml"),
        ({"config.yaml": "VERSION: 2\n"}, "batch.pt"),
        (
            {"config.yaml": toy_cfg().dump(), "batch.pt": "not a zip"},
            "batch.pt is no checkpoint, or damaged",
        ),
    ],
)
def test_wrong_folders(assert_user_error, files, what, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert_user_error(what, "replay", tmp_path)
