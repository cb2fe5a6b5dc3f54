"""tools/convert_weights.py, and the commands of docs/convert_weights.md."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from foreign_models import K, Mmdet, randomize
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from focal_retina import add_focal_retina_config, merge_config_file
from focal_retina.engine import SafeCheckpointer, UserError, exit_status
from focal_retina.interop.files import load_weights

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs" / "convert_weights.md"


def load_tool():
    path = REPOSITORY / "tools" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_tool()


@pytest.fixture
def mmdet_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"meta": {}, "state_dict": randomize(Mmdet()).state_dict()}, "mmdet.pth")
    return ["--from", "mmdet", "--to", "detectron2", "--input", "mmdet.pth"]


def build_from(config_file, weights):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, config_file)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    unused = SafeCheckpointer(model).load(weights, checkpointables=[])
    return model, unused


def test_the_files_that_it_writes_are_loaded_by_a_model_of_the_config(mmdet_file, capsys):
    main([*mmdet_file, "--num-classes", str(K), "--output", "ours.pth", "--config-out", "c.yaml"])
    printed = capsys.readouterr().out
    assert "changed: anchors in Detectron2's order" in printed
    assert printed.splitlines()[-1].endswith("tensors: ours.pth")
    data = torch.load("ours.pth", weights_only=True)
    assert data["matching_heuristics"] is False and data["__author__"]
    model, rest = build_from("c.yaml", "ours.pth")
    assert rest.keys() == {"__author__", "matching_heuristics"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, data["model"][name]), name

    back = ["--from", "detectron2", "--config-file", "c.yaml", "--input", "ours.pth"]
    main([*back, "--to", "mmdet", "--output", "back.pth", "--config-out", "mmdet.yaml"])
    theirs, ours = load_weights(Path("mmdet.pth")), load_weights(Path("back.pth"))
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name
    settings = yaml.safe_load(Path("mmdet.yaml").read_text())
    assert settings["num_classes"] == K and settings["pixels"]["order"] == "RGB"


def test_nothing_is_written_that_is_not_complete(mmdet_file, capsys):
    tensors = torch.load("mmdet.pth", weights_only=True)["state_dict"]
    tensors["extra"] = torch.zeros(1)
    torch.save(tensors, "mmdet.pth")
    command = [*mmdet_file, "--num-classes", str(K), "--output", "ours.pth"]
    with pytest.raises(UserError, match="nothing is written without --allow-missing"):
        main(command)
    assert "unused: extra\n" in capsys.readouterr().out
    assert not Path("ours.pth").exists()
    main([*command, "--allow-missing"])
    assert Path("ours.pth").exists()


def test_user_errors_are_one_line_and_status_2(mmdet_file, capsys):
    classes = ["--num-classes", str(K)]
    cases = {
        "mmdet.pth: the file has 5 classes": [*mmdet_file, "--output", "o.pth"],
        "no multiple of 3 aspect ratios": [*mmdet_file, "--output", "o.pth", "--num-anchors", "8"],
        "ends in .pth": [*mmdet_file, "--output", "o.onnx", *classes],
        "need the model's config": [*mmdet_file, "--from", "detectron2", "--output", "o.pth"],
        "--config-file is for": [*mmdet_file, "--config-file", "c.yaml", "--output", "o.pth"],
        "No such file": [*mmdet_file, "--input", "none.pth", "--output", "o.pth"],
    }
    for message, argv in cases.items():
        assert exit_status(lambda argv=argv: main(argv)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_stated_counts_have_to_be_the_configs(mmdet_file):
    main([*mmdet_file, "--num-classes", str(K), "--output", "o.pth", "--config-out", "c.yaml"])
    command = ["--from", "detectron2", "--to", "mmdet", "--config-file", "c.yaml"]
    command += ["--input", "o.pth", "--output", "back.pth"]
    for option, value in (("--num-classes", "6"), ("--num-anchors", "12"), ("--num-classes", "0")):
        with pytest.raises(UserError, match=f"{option} {value}, but . in the config"):
            main([*command, option, value])


def test_commands_of_the_page(tmp_path, monkeypatch):
    """On a model of torchvision's names with the smallest ResNet."""
    monkeypatch.chdir(tmp_path)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    state = randomize(RetinaNet(backbone, num_classes=91)).state_dict()
    torch.save(state, "retinanet_resnet50_fpn_coco.pth")
    lines = DOCS.read_text().replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("./run ")]
    convert = [c for c in commands if c.startswith("./run tools/convert_weights.py ")]
    evaluate = [c for c in commands if c.startswith("./run train_net.py ")]
    assert len(convert) == 2 and len(evaluate) == 1 and len(commands) == 3
    for command in convert:
        main(shlex.split(command)[2:])
    words = shlex.split(evaluate[0])
    config_file = words[words.index("--config-file") + 1]
    build_from(config_file, words[words.index("MODEL.WEIGHTS") + 1])
    back = load_weights(Path("back.safetensors"))
    name = "head.regression_head.bbox_reg.weight"
    assert torch.equal(back[name], state[name])
