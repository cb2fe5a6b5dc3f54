"""DATA_CHECK.MODE ``skip``: a training without the images and objects that the check rejects."""

import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm

from .check import CHECKS, box_faults
from .report import check_dataset
from .table import build_table, is_generated

_logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


def build_record_filter(cfg: CfgNode) -> Callable[[Records], Records]:
    """The function that removes unusable records of DATASETS.TRAIN, where
    MODEL.FOCAL_RETINA.DATA_CHECK.MODE is "skip"; otherwise one that removes nothing.

    The main process checks the sets, and the others take over what it found: each process of a
    training must call the function. It raises ValueError where nothing remains.
    """
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK
    names = [name for name in cfg.DATASETS.TRAIN if not is_generated(name)]

    def unusable_images() -> set[str]:
        reports = [check_dataset(name, num_decoded=options.NUM_DECODED) for name in names]
        return set().union(*(report.unusable_images for report in reports))

    def drop(records: Records) -> Records:
        unusable = comm.all_gather(unusable_images() if comm.is_main_process() else None)[0]
        kept = drop_unusable(records, unusable)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kept = filter_images_with_only_crowd_annotations(kept)
        if not kept:
            raise ValueError(f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: no usable image remains")
        return kept

    return drop if options.MODE == "skip" else lambda records: records


def drop_unusable(records: Records, unusable_images: Collection[str]) -> Records:
    """Remove unusable images, and objects with a faulty box; log how many.

    Args:
        records: in Detectron2's format; they are not changed.
        unusable_images: paths, of :class:`~focal_retina.dataset_check.DatasetReport`.
    """
    kept = [record for record in records if record["file_name"] not in unusable_images]
    dropped = Counter({"images that can't be used": len(records) - len(kept)})
    table = build_table("", kept, {})
    is_faulty = np.zeros(len(table.boxes), dtype=bool)
    for name, mask in box_faults(table.boxes, table.sizes_of_images).items():
        if CHECKS[name].skipped:
            is_faulty |= mask
            dropped[CHECKS[name].title] += int(mask.sum())
    ends = np.cumsum([len(record["annotations"]) for record in kept])
    for index, mask in enumerate(np.split(is_faulty, ends[:-1])):
        if mask.any():
            objects = zip(kept[index]["annotations"], mask, strict=True)
            kept[index] = {**kept[index], "annotations": [x for x, faulty in objects if not faulty]}
    if parts := [f"{title}: {count:,}" for title, count in dropped.items() if count]:
        _logger.warning("left out: %s; %s images remain", ", ".join(parts), f"{len(kept):,}")
    return kept
