"""metrics.json as Detectron2 writes it, resumed, cut off; and the picture of it."""

import json
import logging

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from focal_retina.figures.training import Series, draw_training_curves, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.json"


def write_rows(path, *rows):
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_reads_what_detectron2_writes(path):
    writer = JSONWriter(str(path))
    with EventStorage() as storage:
        for iteration in range(4):
            storage.put_scalars(total_loss=4.0 - iteration, lr=0.1, smoothing_hint=False)
            if iteration == 3:
                storage.put_scalar("bbox/AP", 12.5, smoothing_hint=False)
            writer.write()
            storage.step()
    writer.close()
    metrics = read_metrics(path)
    assert metrics["total_loss"] == Series([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0])
    assert metrics["bbox/AP"] == Series([3], [12.5])


def test_a_resumed_run_replaces_what_it_repeats(path):
    write_rows(path, *({"iteration": i, "total_loss": 1.0} for i in (10, 20, 30, 40)))
    write_rows(path, *({"iteration": i, "total_loss": 2.0} for i in (25, 35)))
    assert read_metrics(path)["total_loss"] == Series([10, 20, 25, 35], [1.0, 1.0, 2.0, 2.0])


def test_each_scalar_has_its_own_iterations(path):
    """One write of Detectron2 may hold rows of several iterations, in any order."""
    write_rows(path, {"iteration": 20, "lr": 0.1}, {"iteration": 19, "bbox/AP": 5})
    write_rows(path, {"iteration": 40, "lr": 0.2})
    metrics = read_metrics(path)
    assert metrics == {"lr": Series([20, 40], [0.1, 0.2]), "bbox/AP": Series([19], [5.0])}


@pytest.mark.parametrize(
    "rest", ["", '{"iteration": 30, "lr": 0.1}\n{"iteration": 40, "lr": 0.1}\n']
)
def test_a_cut_off_line_is_left_out_with_a_warning(path, rest, caplog):
    write_rows(path, {"iteration": 10, "lr": 0.1})
    with path.open("a") as file:
        file.write('{"iteration": 20, "l' + rest)
    with caplog.at_level(logging.WARNING):
        metrics = read_metrics(path)
    assert metrics["lr"].iterations == ([10, 40] if rest else [10])
    assert f"{path}, line 2" in caplog.text


def test_an_empty_file_is_an_error(path):
    path.write_text("")
    with pytest.raises(ValueError, match="holds no metrics"):
        read_metrics(path)


def test_picture_shows_every_loss_the_rate_and_evaluated_ap(tmp_path, saved):
    names = ("total_loss", "loss_cls", "loss_box_reg", "lr", "time")
    metrics = {name: Series([19, 39], [3.0, float("nan")]) for name in names}
    metrics |= {"bbox/AP": Series([39], [51.26]), "bbox/AP-ring": Series([39], [10.0])}
    draw_training_curves(metrics, tmp_path / "curves.png")
    losses, precision, rate = ({line.get_label() for line in axes.lines} for axes in saved[0].axes)
    assert losses == {"total_loss", "loss_cls", "loss_box_reg"}
    assert (precision, len(rate)) == ({"AP"}, 1)
