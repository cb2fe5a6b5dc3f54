"""Training batches: the same however they are loaded, and Detectron2's keys honoured."""

import functools
import itertools
import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import default_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.data.loader import TrainLoader, build_train_loader, seeded
from focal_retina.data.schedule import TrainingSchedule, build_schedule

NUM_IMAGES = 10


def draw(record):
    """A mapper: the image's number, and a random number of each generator."""
    numbers = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    return {"index": record["index"], "random": numbers}


def draw_unless_corrupt(record):
    return None if record["index"] in (3, 4) else draw(record)


def make_loader(mapper=draw, start_iter=0, **options):
    records = [{"index": i, "file_name": f"{i}.jpg"} for i in range(NUM_IMAGES)]
    groups = np.zeros(NUM_IMAGES, dtype=int)
    schedule = functools.partial(TrainingSchedule, groups=groups, batch_size=4)
    options |= {"build_schedule": schedule, "batch_size": 4, "seed": 11}
    loader = TrainLoader(records=records, mapper=mapper, **options)
    loader.start_iter = start_iter
    return loader


def take(loader, count):
    return list(itertools.islice(loader, count))


EXPECTED = take(make_loader(), 8)


def test_images_and_random_numbers_differ_between_iterations():
    numbers = {x for batch in EXPECTED for sample in batch for x in sample["random"]}
    assert len(numbers) == 8 * 4 * 3


@given(st.integers(0, 5))
@settings(deadline=None, max_examples=5)
def test_begins_at_any_iteration(start_iter):
    assert take(make_loader(start_iter=start_iter), 3) == EXPECTED[start_iter : start_iter + 3]


def test_data_workers_change_nothing():
    assert take(make_loader(num_workers=2, start_iter=1), 5) == EXPECTED[1:6]


def resize_and_draw(record):
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1000, 1000))
    return draw(record)


def test_data_workers_after_opencv_has_used_threads_here():
    """A forked process does not have OpenCV's threads, and must not wait for them."""
    cv2.setNumThreads(4)
    resize_and_draw({"index": 0})
    assert take(make_loader(resize_and_draw, num_workers=1), 2) == EXPECTED[:2]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch(world_size):
    shares = [take(make_loader(rank=r, world_size=world_size), 3) for r in range(world_size)]
    batches = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    assert batches == EXPECTED[:3]


def test_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="IMS_PER_BATCH 4 .* 3 processes"):
        make_loader(world_size=3)


def test_images_left_out_are_replaced_by_later_ones(caplog):
    """By the first usable one at the same position of the next batches, and counted."""
    loader = make_loader(draw_unless_corrupt)
    batches = take(loader, 5)
    replaced = 0
    for t, position in itertools.product(range(5), range(4)):
        column = [batch[position]["index"] for batch in EXPECTED[t:]]
        usable = [i for i, index in enumerate(column) if index not in (3, 4)]
        assert batches[t][position]["index"] == column[usable[0]]
        replaced += usable[0]
    assert loader.num_left_out == replaced > 0
    assert "3.jpg" in caplog.text


def test_nothing_but_images_left_out_is_an_error():
    with pytest.raises(ValueError, match="left out 9 images in a row: .*jpg"):
        take(make_loader(lambda record: None), 1)


def test_global_generators_are_left_alone():
    """In this process, with num_workers=0, and at the start of data workers."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    take(make_loader(), 2)
    with seeded(1, 2):
        draw({"index": 0})
    ours = draw({"index": 0})
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    assert draw({"index": 0}) == ours


@pytest.fixture
def cfg():
    """Config of a data set of 8 images: all have class 0, image 7 alone has class 1."""
    records = []
    for i in range(8):
        record = {"file_name": f"{i}.jpg", "index": i, "width": 10 + i % 2 * 10, "height": 15}
        annotations = [{"category_id": c} for c in ([0, 1] if i == 7 else [0])]
        records.append({**record, "annotations": annotations})
    records.append({**records[0], "index": 8, "annotations": []})
    DatasetCatalog.register("loader_test", lambda: [dict(x) for x in records])
    options = {"DATASETS.TRAIN": ("loader_test",), "SOLVER.IMS_PER_BATCH": 4, "SEED": 0}
    return default_cfg("DATALOADER.NUM_WORKERS", 0, *itertools.chain(*options.items()))


def indices(cfg, count):
    loader = build_train_loader(cfg, draw)
    return [[x["index"] for x in batch] for batch in take(loader, count)]


def test_groups_by_orientation_and_leaves_out_empty_images(cfg):
    batches = indices(cfg, 4)
    assert all(len({i % 2 for i in batch}) == 1 for batch in batches)
    assert 8 not in itertools.chain(*batches)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    batches = indices(cfg, 9)
    assert sorted(itertools.chain(*batches)) == sorted([*range(9)] * 4)
    assert any(len({i % 2 for i in batch}) == 2 for batch in batches)


def test_samplers_of_detectron2(cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    assert len(set(itertools.chain(*indices(cfg, 5)))) == 4

    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5  # class 1 is in 1/8 of the images: sqrt(4) times
    counts = np.bincount(list(itertools.chain(*indices(cfg, 9))))
    assert counts.tolist() == [4] * 7 + [8]

    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [("loader_test", 2.0)]
    counts = np.bincount(list(itertools.chain(*indices(cfg, 4))))
    assert counts.tolist() == [2] * 8


def test_a_weighted_sampler_and_images_left_out(cfg):
    """Its key has a default, which Detectron2 lacks."""
    records = [x for x in DatasetCatalog.get("loader_test") if x["annotations"]]
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    assert cfg.DATASETS.TRAIN_REPEAT_FACTOR == []
    build_schedule(cfg, records)
    with pytest.raises(ValueError, match="WeightedTrainingSampler cannot leave images out"):
        build_schedule(cfg, records[1:])


def test_unknown_sampler_and_empty_subset(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="'Sampler'; it can be TrainingSampler, "):
        build_train_loader(cfg, draw)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.01
    with pytest.raises(ValueError, match="RANDOM_SUBSET_RATIO 0.01 of 8 images"):
        build_train_loader(cfg, draw)


def test_data_set_that_is_no_list_goes_to_detectron2_with_a_warning(cfg, caplog):
    record = {"index": 0, "width": 1, "height": 1}
    images = torch.utils.data.Subset([record] * 4, range(4))
    DatasetCatalog.register("loader_test_torch", lambda: images)
    cfg.DATASETS.TRAIN = ("loader_test_torch",)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert len(indices(cfg, 1)[0]) == 4
    assert "starts anew at resume" in caplog.text
