"""Logits of test-time images with the labels that training would give their anchors.

An image is resized as for a test, one image a batch, without augmentation; its anchors, those over
the padding too, are labeled by the model's own anchor labeler. The model is in evaluation mode.
"""

import random
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import build_augmentation
from torch import Tensor

from ..data import CrowdKeepingMapper
from ..engine import UserError
from ..engine.trained_model import load_trained_model
from ..modeling import FocalRetinaNet
from ..modeling.anchor_labeling import check_gt_instances

_SEED = 0


def load_detector(cfg: CfgNode) -> FocalRetinaNet:
    """:func:`load_trained_model` for what :func:`labeled_predictions` needs.

    Raises:
        UserError: it is another kind of model, which has no anchor labeler to ask; or the
            checkpoint does not fit.
    """
    model = load_trained_model(cfg)
    if not isinstance(model, FocalRetinaNet):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no anchor labeler: set it "
            "to FocalRetinaNet, which loads the checkpoints of RetinaNet, too"
        )
    return model


def build_labeled_loader(cfg: CfgNode, max_images: int) -> Iterable[list[dict]]:
    """Images of DATASETS.TEST, chosen at random but always the same, with their objects.

    Images without objects are among them.

    Raises:
        UserError: the data set has no annotations.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    bare = next((x["file_name"] for x in records if "annotations" not in x), None)
    if bare is not None:
        raise UserError(f"DATASETS.TEST {cfg.DATASETS.TEST}: {bare} has no annotations to label by")
    records = random.Random(_SEED).sample(records, min(max_images, len(records)))
    # Crowd objects match nothing in the anchor labeler: as if the mapper had dropped them, unless
    # the config makes use of them.
    mapper = CrowdKeepingMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
    return build_detection_test_loader(
        records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@torch.no_grad()
def labeled_predictions(
    model: FocalRetinaNet, loader: Iterable[list[dict]]
) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """
    Args:
        model: is put into evaluation mode.
        loader: of :func:`build_labeled_loader`.

    Yields:
        an image's file name; its logits, per level (1, R_l, K); its labels, per level int64
        (1, R_l): -1 ignored, 0 … K-1 a class, K background.

    Raises:
        ValueError: an object's class or box is impossible; the message names the image.
    """
    model.eval()
    for batch in loader:
        gt_instances = [x["instances"] for x in batch]
        names = [x["file_name"] for x in batch]
        check_gt_instances(gt_instances, model.num_classes, names)
        anchors, logits, _ = model.dense_predictions(model.preprocess_image(batch).tensor)
        labels, _ = model.anchor_labeler(anchors, [x.to(model.device) for x in gt_instances])
        yield names[0], logits, list(labels.split([len(x) for x in anchors], dim=1))
