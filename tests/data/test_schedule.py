"""The order of the training images, against Detectron2's grouping and by its laws."""

import itertools

import numpy as np
import pytest
from detectron2.data.common import AspectRatioGroupedDataset
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.data.schedule import TrainingSchedule, orientation_groups


def batches(schedule, count):
    return [schedule.batch(t).tolist() for t in range(count)]


@st.composite
def schedules(draw):
    """(arguments of a schedule, number of images)."""
    groups = draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))
    arguments = {
        "groups": np.array(groups),
        "batch_size": draw(st.integers(1, 7)),
        "seed": draw(st.integers(0, 2**32)),
    }
    if draw(st.booleans()):
        factor = st.floats(0.3, 3.0)
        factors = draw(st.lists(factor, min_size=len(groups), max_size=len(groups)))
        arguments["repeat_factors"] = np.array(factors)
    return arguments


@given(schedules(), st.permutations(range(30)))
def test_a_batch_is_a_function_of_its_iteration(arguments, order):
    """Whatever was asked for before."""
    expected = batches(TrainingSchedule(**arguments), 30)
    schedule = TrainingSchedule(**arguments)
    assert {t: schedule.batch(t).tolist() for t in order} == dict(enumerate(expected))


@given(schedules())
def test_batches_are_those_of_detectron2s_grouping(arguments):
    """Streaming the same epochs through AspectRatioGroupedDataset gives the same batches."""
    schedule = TrainingSchedule(**arguments)
    one_by_one = TrainingSchedule(
        **{**arguments, "batch_size": 1, "groups": np.zeros_like(arguments["groups"])}
    )
    stream = (
        {"index": i, "width": 2 - arguments["groups"][i], "height": 1.5}
        for i in (int(one_by_one.batch(t)[0]) for t in itertools.count())
    )
    grouped = AspectRatioGroupedDataset(stream, arguments["batch_size"])
    expected = [[x["index"] for x in batch] for batch in itertools.islice(grouped, 25)]
    assert batches(schedule, 25) == expected


@given(st.integers(1, 40), st.integers(0, 1000))
def test_each_image_once_an_epoch(num_images, seed):
    schedule = TrainingSchedule(
        groups=np.zeros(num_images, dtype=np.int64), batch_size=1, seed=seed
    )
    images = np.concatenate([schedule.batch(t) for t in range(3 * num_images)])
    for epoch in images.reshape(3, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_epochs_and_seeds_differ():
    def first_epochs(seed):
        schedule = TrainingSchedule(groups=np.zeros(50, dtype=int), batch_size=50, seed=seed)
        return batches(schedule, 2)

    orders = first_epochs(0) + first_epochs(1)
    assert len({tuple(x) for x in orders}) == 4


def test_fractional_repeats_come_to_their_share():
    """Over 100 epochs an image of factor r appears 100 r times, to within one."""
    factors = np.array([1.0, 2.5, 0.25, 1.333])
    schedule = TrainingSchedule(
        groups=np.zeros(4, dtype=int), repeat_factors=factors, batch_size=1, seed=7
    )
    num_images = int(schedule._images_before(100)[0])
    images = np.concatenate([schedule.batch(t) for t in range(num_images)])
    assert np.abs(np.bincount(images, minlength=4) - 100 * factors).max() <= 1


def test_subset_is_drawn_by_the_seed_and_kept():
    def images(seed):
        schedule = TrainingSchedule(
            groups=np.zeros(100, dtype=int), subset_size=10, batch_size=10, seed=seed
        )
        first, second = (set(x) for x in batches(schedule, 2))
        assert first == second and len(first) == 10
        return first

    assert images(0) != images(1)


def test_order_is_the_same_on_every_machine():
    """Golden values of this implementation: a changed order would make old runs unresumable."""
    schedule = TrainingSchedule(groups=np.array([0, 1, 0, 0, 1, 0]), batch_size=2, seed=42)
    assert batches(schedule, 4) == [[1, 4], [3, 5], [0, 2], [5, 3]]
    assert schedule.batch(10**6).tolist() == [5, 0]


def test_late_iterations_of_a_large_set_need_few_epochs():
    groups = (np.arange(118_000) % 4 == 0).astype(np.int64)
    schedule = TrainingSchedule(groups=groups, batch_size=16, seed=1)
    batch = schedule.batch(1_000_000)
    assert len(set(groups[batch])) == 1
    assert schedule._epoch.cache_info().misses <= 2


def test_orientation_is_detectron2s():
    sizes = [(10, 5), (5, 10), (7, 7)]
    assert orientation_groups([{"width": w, "height": h} for w, h in sizes]).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="a.jpg.*ASPECT_RATIO_GROUPING"):
        orientation_groups([{"file_name": "a.jpg"}])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "0 images"),
        ({"batch_size": 1, "repeat_factors": np.zeros(2)}, "no images"),
        ({"batch_size": 1, "subset_size": 0}, "no images"),
    ],
)
def test_nothing_to_train_on(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingSchedule(groups=np.zeros(2, dtype=int), seed=0, **arguments)
