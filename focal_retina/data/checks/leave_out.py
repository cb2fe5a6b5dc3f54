"""Leaving out of a training what the check found unusable."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from .boxes import box_faults
from .kinds import KINDS
from .report import DatasetReport
from .run import check_dataset
from .table import is_generated

_logger = logging.getLogger(__name__)


def leave_out_unusable(cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of DATASETS.TRAIN without what can't be trained on, where
    MODEL.FOCAL_RETINA.DATA_CHECK.MODE is "skip"; otherwise all of them.

    Every process of a training can call it: the check of before is read from the cache.

    Args:
        cfg: the config.
        dataset_dicts: as ``get_detection_dataset_dicts`` returns them for DATASETS.TRAIN.

    Raises:
        ValueError: nothing remains.
    """
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK
    if options.MODE != "skip":
        return dataset_dicts
    num_decoded = None if options.NUM_DECODED < 0 else options.NUM_DECODED
    reports = [
        check_dataset(name, num_decoded=num_decoded)
        for name in cfg.DATASETS.TRAIN
        if not is_generated(name)
    ]
    kept = filter_dataset_dicts(dataset_dicts, reports)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        kept = filter_images_with_only_crowd_annotations(kept)
    if not kept:
        raise ValueError(f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: no usable image remains")
    return kept


def filter_dataset_dicts(
    dataset_dicts: list[dict[str, Any]], reports: Iterable[DatasetReport]
) -> list[dict[str, Any]]:
    """Leave out what ``skip`` leaves out: unusable images, and objects with a faulty box.

    The counts are logged. The records given are not changed.

    Args:
        dataset_dicts: in Detectron2's format, as ``get_detection_dataset_dicts`` returns them.
        reports: of :func:`~focal_retina.data.checks.check_dataset`.
    """
    unusable = {image for report in reports for image in report.unusable_images}
    dropped: Counter[str] = Counter()
    kept = []
    for record in dataset_dicts:
        if record["file_name"] in unusable:
            dropped["images that can't be used"] += 1
            continue
        faults = _faults_of(record)
        dropped.update(KINDS[kind].title for kind in faults if kind)
        if any(faults):
            objects = zip(record["annotations"], faults, strict=True)
            record = {**record, "annotations": [x for x, fault in objects if not fault]}
        kept.append(record)
    if dropped:
        parts = [f"{title}: {count:,}" for title, count in dropped.items()]
        _logger.warning("left out: %s; %s images remain", ", ".join(parts), f"{len(kept):,}")
    return kept


def _faults_of(record: dict[str, Any]) -> list[str]:
    """For each annotation the kind of fault for which its box is left out, or ``""``."""
    boxes = np.array(
        [
            BoxMode.convert(list(x["bbox"]), BoxMode(x["bbox_mode"]), BoxMode.XYWH_ABS)
            for x in record["annotations"]
        ],
        dtype=np.float64,
    ).reshape(-1, 4)
    size = [record.get("width", np.nan), record.get("height", np.nan)]
    kinds = [""] * len(boxes)
    for kind, mask in box_faults(boxes, np.tile(size, (len(boxes), 1))).items():
        if KINDS[kind].leaves_out:
            for index in np.flatnonzero(mask):
                kinds[index] = kind
    return kinds
