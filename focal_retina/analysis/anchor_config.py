"""The anchors of a config, beside the objects of its training sets."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.utils.file_io import PathManager

from ..data.checks import (
    NotRecordsError,
    cached,
    coco_source,
    file_digest,
    is_generated,
    load_table,
)
from .anchor_coverage import AnchorGrid, Coverage, measure_coverage

_logger = logging.getLogger(__name__)

_WORTH_A_WARNING = 0.05


def build_anchor_grid(cfg: CfgNode) -> AnchorGrid:
    """The anchors that the model of ``cfg`` has, read off its own anchor generator.

    Raises:
        ValueError: the generator is not Detectron2's DefaultAnchorGenerator.
    """
    with torch.device("meta"):  # only its strides are asked for: no memory, no random numbers
        backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    features = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    generator = build_anchor_generator(cfg, features)
    if not isinstance(generator, DefaultAnchorGenerator):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.NAME {cfg.MODEL.ANCHOR_GENERATOR.NAME}: only upright anchors "
            "on a grid can be measured"
        )
    return AnchorGrid(
        strides=np.array(generator.strides, dtype=np.float64),
        offset=generator.offset,
        cell_anchors=tuple(x.double().numpy() for x in generator.cell_anchors),
        size_divisibility=max(1, backbone.size_divisibility),
    )


def positive_iou(cfg: CfgNode) -> float:
    """The IoU from which on an anchor is positive.

    Raises:
        ValueError: no band of MODEL.RETINANET.IOU_LABELS is positive.
    """
    labels = list(cfg.MODEL.RETINANET.IOU_LABELS)
    if 1 not in labels[1:]:
        raise ValueError(f"MODEL.RETINANET.IOU_LABELS {labels} makes no anchor positive by its IoU")
    return float(cfg.MODEL.RETINANET.IOU_THRESHOLDS[labels.index(1, 1) - 1])


def input_size(cfg: CfgNode, *, training: bool) -> tuple[int, int]:
    """Short edge and maximal size of the network's input; the middle one of several short edges."""
    if not training:
        return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    edges: Sequence[int] = sorted(np.atleast_1d(cfg.INPUT.MIN_SIZE_TRAIN).tolist())
    return edges[len(edges) // 2], cfg.INPUT.MAX_SIZE_TRAIN


def _training_coverage(cfg: CfgNode, name: str, grid: AnchorGrid) -> Coverage:
    """:func:`measure_coverage` of a training set, cached by the hash of its annotation file."""
    short_edge, max_size = input_size(cfg, training=True)
    threshold = positive_iou(cfg)

    def measure() -> Coverage:
        return measure_coverage(
            load_table(name), grid, threshold=threshold, short_edge=short_edge, max_size=max_size
        )

    source = coco_source(name)
    if source is None:
        return measure()
    digest = file_digest(PathManager.get_local_path(source[0]))
    return cached(
        ["anchor coverage", digest, grid.to_json(), threshold, short_edge, max_size],
        measure,
        encode=Coverage.to_json,
        decode=Coverage.from_json,
    )


def warn_of_unreached_objects(cfg: CfgNode) -> None:
    """Measure the training sets of ``cfg``, and warn where more than 5% reach no anchor.

    Generated sets are left out, as in the data check. Nothing is measured where
    MODEL.FOCAL_RETINA.DATA_CHECK.MODE is "off", or where there is nothing to measure: with an
    anchor generator of the user's own, or where no IoU makes an anchor positive.

    Raises:
        ValueError, FileNotFoundError: as :func:`~focal_retina.data.checks.load_table`.
    """
    if (
        cfg.MODEL.FOCAL_RETINA.DATA_CHECK.MODE == "off"
        or cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator"
        or 1 not in cfg.MODEL.RETINANET.IOU_LABELS[1:]
    ):
        return
    grid = None
    for name in cfg.DATASETS.TRAIN:
        if is_generated(name):
            continue
        grid = grid or build_anchor_grid(cfg)
        try:
            coverage = _training_coverage(cfg, name, grid)
        except NotRecordsError:  # of which the data check has warned
            continue
        if coverage.unreached_share > _WORTH_A_WARNING:
            _logger.warning(
                "%s: %s; tools/check_dataset.py suggests anchor sizes and ratios", name, coverage
            )
