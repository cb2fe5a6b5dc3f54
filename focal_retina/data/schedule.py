"""Which images make up the batch of iteration t, without replaying the iterations before it.

n images in G groups (one group, or two by orientation), batches of B images over all processes.

Epochs are permutations, laid end to end in one stream of images. A batch is B consecutive images
of one group; batches come in the order in which they become complete, as in Detectron2's
``AspectRatioGroupedDataset``. The batches before an epoch are counted, not made, since it is known
how many images an epoch adds to a group: any t costs one or two permutations.
"""

import bisect
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import _build_weighted_sampler
from detectron2.data.samplers import RepeatFactorTrainingSampler
from numpy.typing import NDArray

from ..config import check_choice

Records = list[dict[str, Any]]  # dataset dicts

_CACHED_EPOCHS = 4  # a batch rarely reaches back beyond the epoch before its own
_CACHED_COUNTS = 128  # what one bisection asks for, and more
# Streams of random numbers: epoch e has stream e, these two are far from any.
_PHASE_STREAM = 2**63
_SUBSET_STREAM = 2**63 + 1


def orientation_groups(records: Records) -> NDArray[np.int64]:
    """0 for images that are wider than high, else 1: (n,). ValueError: a record has no size."""
    without = [x for x in records if not {"width", "height"} <= x.keys()]
    if without:
        raise ValueError(
            f"{without[0].get('file_name', 'an image')}: the annotations do not give width and "
            "height, by which DATALOADER.ASPECT_RATIO_GROUPING groups; set it to False"
        )
    return np.array([x["width"] <= x["height"] for x in records], dtype=np.int64)


class _Epoch(NamedTuple):
    images: list[NDArray[np.int64]]  # of each group, in this epoch's order
    completed_group: NDArray[np.int64]  # group of each batch that becomes complete in this epoch
    completed_count: NDArray[np.int64]  # and which batch of its group that is, from 0


@dataclass(kw_only=True, eq=False)
class TrainingSchedule:
    """The images of any batch: a pure function of the arguments. Each process takes its slice.
    ValueError: there are no images, or no batches."""

    groups: NDArray[np.int64]  # (n,), of each image, 0 … G-1; a batch is from one group
    # (n,), how often an epoch has each image; None: once; 2.5: 2 and 3 times by turns
    repeat_factors: NDArray[np.float64] | None = None
    subset_size: int | None = None  # train on that many images, which the seed chooses
    batch_size: int  # B
    seed: int  # 0 or more

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"the batch has {self.batch_size} images; it needs at least one")
        factors = np.ones(len(self.groups)) if self.repeat_factors is None else self.repeat_factors
        self._factors = factors.astype(np.float64)
        if self.subset_size is not None:
            order = np.argsort(self._random_words(len(factors), stream=_SUBSET_STREAM))
            self._factors[order[self.subset_size :]] = 0
        if not (self._factors > 0).any():
            raise ValueError("there are no images to train on")
        # Where in its cycle of rounding up and down each image begins, in [0, 1)
        words = self._random_words(len(factors), stream=_PHASE_STREAM)
        self._phases = (words >> np.uint64(11)) * 2.0**-53
        self._epoch = functools.lru_cache(_CACHED_EPOCHS)(self._make_epoch)
        self._images_before = functools.lru_cache(_CACHED_COUNTS)(self._count_images_before)

    def batch(self, iteration: int) -> NDArray[np.int64]:
        """Indices of the B images of iteration t, counted from 0."""
        epoch = self._epoch_of(iteration)
        position = iteration - self._batches_before(epoch)
        group = self._epoch(epoch).completed_group[position]
        first = int(self._epoch(epoch).completed_count[position]) * self.batch_size
        images = np.empty(0, dtype=np.int64)
        while len(images) < self.batch_size:  # backwards: the last of them are in this epoch
            start = first - self._images_before(epoch)[group]
            piece = self._epoch(epoch).images[group][max(0, start) : start + self.batch_size]
            images, epoch = np.concatenate([piece, images]), epoch - 1
        return images

    def _epoch_of(self, iteration: int) -> int:
        """The epoch in which the batch of this iteration becomes complete, by bisection."""
        high = 1
        while self._batches_before(high) <= iteration:
            high *= 2
        return bisect.bisect_right(range(high), iteration, key=self._batches_before) - 1

    def _batches_before(self, epoch: int) -> int:
        return int((self._images_before(epoch) // self.batch_size).sum())

    def _appearances_before(self, epoch: int) -> NDArray[np.int64]:
        """(n,), how often each image has come up at the start of an epoch."""
        return np.floor(epoch * self._factors + self._phases).astype(np.int64)

    def _count_images_before(self, epoch: int) -> NDArray[np.int64]:
        """(G,), images of each group in the stream at the start of an epoch."""
        return np.bincount(self.groups, self._appearances_before(epoch)).astype(np.int64)

    def _make_epoch(self, index: int) -> _Epoch:
        repeats = self._appearances_before(index + 1) - self._appearances_before(index)
        images = np.repeat(np.arange(len(repeats)), repeats)
        keys = self._random_words(len(images), stream=index)
        images = images[np.argsort(keys, kind="stable")]
        groups = self.groups[images]

        by_group = []
        # How many images of its own group stand in the stream up to and with each image
        count = np.empty(len(images), dtype=np.int64)
        for group, before in enumerate(self._images_before(index)):
            by_group.append(images[groups == group])
            count[groups == group] = before + 1 + np.arange(len(by_group[-1]))
        completes = np.flatnonzero(count % self.batch_size == 0)
        return _Epoch(by_group, groups[completes], count[completes] // self.batch_size - 1)

    def _random_words(self, size: int, *, stream: int) -> NDArray[np.uint64]:
        # The raw words of a bit generator are the same in every version of NumPy; the results of
        # `Generator.permutation` are not promised to be.
        return np.random.Philox(key=[self.seed, stream]).random_raw(size)


def build_schedule(cfg: CfgNode, records: Records) -> Callable[..., TrainingSchedule]:
    """The order that ``DATALOADER.{SAMPLER_TRAIN, ASPECT_RATIO_GROUPING}`` ask for, as a function
    of ``seed``; ValueError: an unknown sampler, a subset of no images, an image without a size."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    check_choice("DATALOADER.SAMPLER_TRAIN", name, _SAMPLERS)
    is_grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    groups = orientation_groups(records) if is_grouped else np.zeros(len(records), dtype=np.int64)
    options = {"groups": groups, "batch_size": cfg.SOLVER.IMS_PER_BATCH}
    return functools.partial(TrainingSchedule, **options, **_SAMPLERS[name](cfg, records))


def _random_subset(cfg: CfgNode, records: Records) -> dict[str, Any]:
    ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
    size, total = int(len(records) * ratio), len(records)
    if not 0 < size <= total:
        key = "DATALOADER.RANDOM_SUBSET_RATIO"
        raise ValueError(f"{key} {ratio} of {total} images are {size}, not 1 to {total}")
    return {"subset_size": size}


def _by_category(cfg: CfgNode, records: Records) -> dict[str, Any]:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return {"repeat_factors": factors.double().numpy()}


def _by_weight(cfg: CfgNode, records: Records, balance: bool) -> dict[str, NDArray[np.float64]]:
    sampler = _build_weighted_sampler(cfg, enable_category_balance=balance)
    factors = (sampler._int_part + sampler._frac_part).double().numpy()
    if len(factors) != len(records):  # Detectron2's function reads all records by itself
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} cannot leave images out: "
            "correct them, or use RepeatFactorTrainingSampler"
        )
    return {"repeat_factors": factors}


_SAMPLERS: dict[str, Callable[[CfgNode, Records], dict[str, Any]]] = {
    "TrainingSampler": lambda cfg, records: {},
    "RepeatFactorTrainingSampler": _by_category,
    "RandomSubsetTrainingSampler": _random_subset,
    "WeightedTrainingSampler": functools.partial(_by_weight, balance=False),
    "WeightedCategoryTrainingSampler": functools.partial(_by_weight, balance=True),
}
