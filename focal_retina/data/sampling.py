"""What Detectron2's ``DATALOADER`` keys say of the order of the training images.

n images. Each of Detectron2's training samplers comes to how often an epoch has each image.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import _build_weighted_sampler
from detectron2.data.samplers import RepeatFactorTrainingSampler
from numpy.typing import NDArray

from .schedule import TrainingSchedule, orientation_groups

Records = list[dict[str, Any]]


def build_schedule(cfg: CfgNode, records: Records) -> Callable[..., TrainingSchedule]:
    """The order that ``DATALOADER.{SAMPLER_TRAIN, ASPECT_RATIO_GROUPING}`` ask for.

    Returns:
        A function of ``seed``.

    Raises:
        ValueError: an unknown sampler, a subset of no images, an image without a size.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; it can be {', '.join(_SAMPLERS)}")
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = orientation_groups(records)
    else:
        groups = np.zeros(len(records), dtype=np.int64)
    return functools.partial(
        TrainingSchedule,
        groups=groups,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        **_SAMPLERS[name](cfg, records),
    )


def _each_once(cfg: CfgNode, records: Records) -> dict[str, Any]:
    return {}


def _random_subset(cfg: CfgNode, records: Records) -> dict[str, Any]:
    ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
    size = int(len(records) * ratio)
    if not 0 < size <= len(records):
        raise ValueError(
            f"DATALOADER.RANDOM_SUBSET_RATIO {ratio} of {len(records)} images are {size}: it must "
            "leave at least one, and be at most 1"
        )
    return {"subset_size": size}


def _by_category(cfg: CfgNode, records: Records) -> dict[str, Any]:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return {"repeat_factors": factors.double().numpy()}


def _by_weight(cfg: CfgNode, records: Records, balance: bool) -> dict[str, NDArray[np.float64]]:
    sampler = _build_weighted_sampler(cfg, enable_category_balance=balance)
    return {"repeat_factors": (sampler._int_part + sampler._frac_part).double().numpy()}


_SAMPLERS: dict[str, Callable[[CfgNode, Records], dict[str, Any]]] = {
    "TrainingSampler": _each_once,
    "RepeatFactorTrainingSampler": _by_category,
    "RandomSubsetTrainingSampler": _random_subset,
    "WeightedTrainingSampler": functools.partial(_by_weight, balance=False),
    "WeightedCategoryTrainingSampler": functools.partial(_by_weight, balance=True),
}
