"""Training batches that a resumed run draws exactly as an uninterrupted one.

Images and the random numbers of their augmentation are functions of (data set, seed, iteration,
position in the batch), see :mod:`.schedule`. Each process maps its share of a batch of B images.
"""

import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from .images import Mapper
from .schedule import TrainingSchedule, build_schedule

logger = logging.getLogger(__name__)

# Images that may stand in for one that the mapper leaves out, before that is an error
_NUM_SPARES = 8


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch (CPU) from ``key``; afterwards theirs of before."""
    generator = torch.default_generator
    states = random.getstate(), np.random.get_state(), generator.get_state()  # noqa: NPY002
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002
    generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        generator.set_state(states[2])


def prepare_data_worker(worker_id: int = 0) -> None:
    """One thread, which signals to a whole process group don't end: after Ctrl-C and SIGTERM the
    main process still needs its data workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this process once its parent is dead or sends SIGTERM, as Python does at its exit."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


class _MappedBatches(Dataset):
    """(iteration, candidates) to the mapped share of that iteration's batch, in a data worker."""

    def __init__(self, records: Any, mapper: Mapper, seed: int, first_position: int):
        self._records, self._mapper = records, mapper
        self._seed, self._first_position = seed, first_position

    def __getitem__(self, item: tuple[int, NDArray[np.int64]]) -> tuple[list[dict], list[str]]:
        iteration, candidates = item
        samples, left_out = [], list[str]()
        for position, indices in enumerate(candidates.T, start=self._first_position):
            for index in indices:
                record = self._records[int(index)]
                with seeded(self._seed, iteration, position):
                    sample = self._mapper(dict(record))
                if sample is not None:
                    samples.append(sample)
                    break
                left_out.append(str(record.get("file_name", record.get("image_id"))))
            else:
                raise ValueError(
                    f"iteration {iteration}: the mapper left out {len(indices)} images in a row: "
                    f"{', '.join(left_out[-len(indices) :])}; check the data set"
                )
        return samples, left_out


@dataclass(kw_only=True, eq=False)
class TrainLoader(Iterable[list[dict[str, Any]]]):
    """Endless mapped batches of B images, from iteration ``start_iter`` on. An image for which the
    mapper returns None is replaced by the one at its position in the next iteration's batch, and so
    on; ``num_left_out`` counts them."""

    records: InitVar[list[dict[str, Any]]]
    mapper: Mapper
    build_schedule: Callable[..., TrainingSchedule]  # from ``seed`` to the order of the images
    batch_size: int  # B, a multiple of ``world_size``
    seed: int  # of order and augmentation, 0 or more; may be set before the first batch
    num_workers: int = 0  # processes, of which each makes whole batches; 0: this process does
    rank: int = 0
    world_size: int = 1
    start_iter: int = 0
    num_left_out: int = 0

    def __post_init__(self, records: list[dict[str, Any]]) -> None:
        share, rest = divmod(self.batch_size, self.world_size)
        if rest:
            batch, world = self.batch_size, self.world_size
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} is not a multiple of {world} processes")
        self.num_images = len(records)
        # In shared memory, and a new dict at each access, which the mapper may change
        self._records = DatasetFromList(records, copy=False)
        self._share = slice(self.rank * share, (self.rank + 1) * share)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        if self.num_workers > 0 and "cv2" in sys.modules:
            # A forked process would wait for OpenCV's threads, which were not forked.
            sys.modules["cv2"].setNumThreads(1)
        loader = DataLoader(
            _MappedBatches(self._records, self.mapper, self.seed, self._share.start),
            batch_size=None,
            sampler=self._candidates(),
            num_workers=self.num_workers,
            worker_init_fn=prepare_data_worker,
            # Else each iterator draws a number from the global generator
            generator=torch.Generator().manual_seed(self.seed),
        )
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # workers inherit it
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for samples, left_out in batches:
                if left_out:
                    self.num_left_out += len(left_out)
                    names, times = ", ".join(left_out), f"({self.num_left_out} times so far)"
                    logger.warning(f"replaced, as the mapper left them out: {names} {times}")
                yield samples
        finally:
            # At once, not after the batches that they are making
            for worker in getattr(batches, "_workers", ()):
                worker.terminate()

    def _candidates(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(t, indices): column i has the image at position i of the share, then its spares."""
        schedule = self.build_schedule(seed=self.seed)
        window: deque[NDArray[np.int64]] = deque(maxlen=1 + _NUM_SPARES)
        for ahead in itertools.count(self.start_iter):
            window.append(schedule.batch(ahead)[self._share])
            if len(window) == window.maxlen:
                yield ahead - _NUM_SPARES, np.stack(window)


def build_train_loader(
    cfg: CfgNode, mapper: Mapper, filter_records: Callable[[list], list] | None = None
) -> Iterable[list[dict[str, Any]]]:
    """The loader of ``DATASETS.TRAIN``, honouring Detectron2's ``DATALOADER`` keys. A ``cfg.SEED``
    below 0 is a random one that all processes share. A data set that is not a list of dicts is left
    to Detectron2's loader. ValueError: as of :func:`build_schedule` and :class:`TrainLoader`."""
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
    if not isinstance(records, list):
        logger.warning(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN} is a {type(records).__name__}, not a list of "
            "dicts: its images come in Detectron2's order, which starts anew at resume"
        )
        return build_detection_train_loader(cfg, dataset=records, mapper=mapper)
    if filter_records is not None:
        records = filter_records(records)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if seed != cfg.SEED:
        logger.info(f"SEED is {cfg.SEED}: the order of the images has the random seed {seed}")
    return TrainLoader(
        records=records,
        mapper=mapper,
        build_schedule=build_schedule(cfg, records),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
