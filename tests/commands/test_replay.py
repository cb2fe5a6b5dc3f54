"""focal-retina replay: a dumped batch gives the same losses again, and tells where it broke."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from focal_retina import add_focal_retina_config
from focal_retina.commands import main
from focal_retina.commands.replay import replay
from focal_retina.engine import Trainer
from focal_retina.engine.nonfinite import NonFiniteGuard

NUM_LEVELS = 5


def make_cfg():
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    return cfg


def make_batch():
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 5, 40, 40], [2, 2, 62, 62]]))
    instances.gt_classes = torch.tensor([0, 2])
    image = torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    return [{"image": image, "instances": instances, "file_name": "a/b.jpg", "image_id": 3}]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """(dump, error) of a training whose third step meets a weight that is NaN."""
    folder = tmp_path_factory.mktemp("run")
    cfg = make_cfg()
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    trainer = SimpleTrainer(model, [make_batch()] * 3, torch.optim.SGD(model.parameters(), 1e-9))
    guard = NonFiniteGuard(model, config=cfg.dump(), folder=folder)
    trainer.register_hooks([guard])
    with EventStorage() as storage:
        for trainer.iter in range(2):
            trainer.run_step()
            storage.step()
        with torch.no_grad():
            model.backbone.fpn_output4.bias[3] = torch.nan
        trainer.iter = 2
        with pytest.raises(FloatingPointError) as error:
            trainer.run_step()
    return folder / "iter_0000002", error.value


def test_replays_and_names_the_first_module(dumped, capsys):
    folder, error = dumped
    assert str(folder) in str(error)
    assert main(["replay", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "a/b.jpg (image id 3)" in output
    assert "weights that are not finite before the step: backbone.fpn_output4.bias" in output
    assert "first activation that is not finite: backbone.fpn_output4 (Conv2d): 16 of" in output
    assert "loss_cls nan" in output
    table = output[output.index("level  ") :].splitlines()
    assert len(table) >= 1 + NUM_LEVELS
    finite = ["nan" not in line for line in table[1 : 1 + NUM_LEVELS]]
    assert finite[0] and not finite[1]  # P3 is made before P4's convolution, not of its output


def test_report_has_the_levels(dumped):
    report = json.loads((dumped[0] / "report.json").read_text())
    assert len(report["levels"]) == NUM_LEVELS
    assert sum(level["num_positives"] for level in report["levels"]) > 0


def test_levels_add_up_to_the_losses_of_the_step(tmp_path):
    """Of a dump of a finite step: the same losses as in training, to the last digit shown."""
    cfg = make_cfg()
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    batch = make_batch()
    guard = NonFiniteGuard(model, config=cfg.dump(), folder=tmp_path)
    trainer = SimpleTrainer(model, [batch], torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([guard])
    trainer.iter = 0
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    folder = guard._dump()
    lines = list(replay(folder))
    assert f"loss_cls {losses['loss_cls'].item():.9g}" in lines
    assert f"loss_box_reg {losses['loss_box_reg'].item():.9g}" in lines
    assert "first activation that is not finite: none" in lines
    levels = json.loads((folder / "report.json").read_text())["levels"]
    for name, loss in losses.items():
        total = sum(level[name] for level in levels)
        assert total == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "damage, what",
    [
        (lambda folder: None, "is no dump of a batch"),
        (lambda folder: (folder / "config.yaml").write_text("MODEL: [1"), "config.yaml"),
        (lambda folder: (folder / "config.yaml").write_text("VERSION: 2\n"), "batch.pt"),
    ],
)
def test_wrong_folder_is_one_line_and_status_2(damage, what, tmp_path, capsys):
    damage(tmp_path)
    assert main(["replay", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert what in error and error.startswith("focal-retina replay: ") and "\n" not in error


def test_a_damaged_dump_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(make_cfg().dump())
    (tmp_path / "batch.pt").write_bytes(b"not a zip archive")
    assert main(["replay", str(tmp_path)]) == 2
    assert "batch.pt cannot be read" in capsys.readouterr().err
