"""focal-retina convert as a user calls it."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from focal_retina.commands.convert import LIBRARIES
from focal_retina.engine import SafeCheckpointer, load_config
from focal_retina.interop import ADAPTERS
from focal_retina.weight_reader import read_weights


@pytest.fixture(scope="module")
def weights():
    """Of torchvision's RetinaNet with the smallest ResNet, for COCO."""
    top_block = LastLevelP6P7(256, 256)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=top_block
    )
    return RetinaNet(backbone, num_classes=91).state_dict()


@pytest.fixture
def arguments(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(weights, "theirs.pth")
    return ["--from", "torchvision-v1", "--to", "detectron2", "--input", "theirs.pth"]


def build_from(config_file, weights):
    model = build_model(load_config(config_file, ["MODEL.DEVICE", "cpu"]))
    unused = SafeCheckpointer(model).load(weights, checkpointables=[])
    return model, unused


def test_the_files_that_it_writes_are_loaded_by_a_model_of_the_config(command, arguments, weights):
    output = ["--output", "ours.pth"]
    status, printed, _ = command("convert", *arguments, *output, "--config-out", "c.yaml")
    assert status == 0
    assert "changed: anchors in Detectron2's order" in printed
    assert printed.splitlines()[-1].endswith("tensors: ours.pth")
    data = torch.load("ours.pth", weights_only=True)
    model, rest = build_from("c.yaml", "ours.pth")
    assert rest == {"__author__": "focal_retina", "matching_heuristics": False}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, data["model"][name]), name

    back = ["--from", "detectron2", "--config-file", "c.yaml", "--input", "ours.pth"]
    back += ["--to", "torchvision-v1", "--output", "back.pkl", "--config-out", "theirs.yaml"]
    assert command("convert", *back)[0] == 0
    name = "head.regression_head.bbox_reg.weight"
    assert torch.equal(torch.as_tensor(read_weights(Path("back.pkl"))[name]), weights[name])
    settings = yaml.safe_load(Path("theirs.yaml").read_text())
    assert settings["INPUT"] == {"FORMAT": "RGB"}


def test_the_help_names_all_libraries():
    assert sorted(ADAPTERS) == LIBRARIES


def test_nothing_is_written_that_is_not_complete(command, arguments, weights):
    torch.save({**weights, "extra": torch.zeros(1)}, "theirs.pth")
    words = ["convert", *arguments, "--output", "ours.pth"]
    status, out, err = command(*words)
    assert status == 2 and "nothing is written without --allow-missing" in err
    assert "unused: extra\n" in out
    assert not Path("ours.pth").exists()
    assert command(*words, "--allow-missing")[0] == 0
    assert Path("ours.pth").exists()


def test_user_errors(arguments, assert_user_error):
    cases = {
        "theirs.pth: the file is of 91 classes": [*arguments, "--num-classes", "5"],
        "no multiple of 3 aspect ratios": [*arguments, "--num-anchors", "8"],
        "ends in .pth": [*arguments, "--output", "o.onnx"],
        "need the model's config": [*arguments, "--from", "detectron2"],
        "from others need --num-classes": [*arguments, "--config-file", "c.yaml"],
        "No such file": [*arguments, "--input", "none.pth"],
    }
    for message, words in cases.items():
        assert_user_error(message, "convert", "--output", "o.pth", *words)
