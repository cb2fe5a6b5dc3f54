"""What a training leaves, of a model of toy size that finds something everywhere."""

from pathlib import Path

import torch
from config_files import load
from detectron2.modeling import build_model


def make_run(folder: Path, datasets: tuple[str, ...] = (), **thresholds: float) -> Path:
    """Write config.yaml and model_final.pth; two classes, levels of strides 8 and 16.

    Args:
        folder: is made.
        datasets: DATASETS.TRAIN and TEST.
        thresholds: keys below MODEL.RETINANET.
    """
    cfg = load("quickstart/shapes.yaml")
    # A network without weights to load
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone_without_top_block"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.RESNETS.NORM = ["res3", "res4"], "BN"
    cfg.INPUT.FORMAT = "BGR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    for key, value in thresholds.items():
        cfg.MODEL.RETINANET[key] = value
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 112
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = datasets
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        # Scores from 0 to 1, and boxes that differ from their anchors.
        model.head.cls_score.weight.mul_(100)
        model.head.cls_score.bias.fill_(-2.5)
        model.head.bbox_pred.weight.mul_(10)
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder
