"""How candidates are measured: what is counted, in which order, and how it is shown."""

import json

import pytest
import torch

from focal_retina.benchmark import timing
from focal_retina.benchmark.timing import COPY, Row, machine, markdown, measure, write_json

CPU = torch.device("cpu")


def rows_of(candidates, runs=1):
    (rows,) = measure([("case", candidates)], CPU, runs)
    return rows


def test_candidates_take_turns():
    calls = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    rows = rows_of(candidates, runs=4)
    rounds = timing.WARM_UP_ROUNDS + 4
    assert "".join(calls[: 3 * rounds]) == "abc" * rounds
    assert [row.candidate for row in rows] == list("abc")


def test_time_is_the_median_of_the_runs_after_warming_up(monkeypatch):
    # Two warm-up rounds of 100 s, then runs of 1, 2 and 9 s.
    durations = [100, 100, 1, 2, 9]
    stamps = [stamp for duration in durations for stamp in (0, duration)]
    monkeypatch.setattr(timing.time, "perf_counter", iter(stamps).__next__)
    (row,) = rows_of({"it": lambda: None}, runs=3)
    assert row.seconds == 2


def test_cases_are_made_one_at_a_time():
    made = []

    def cases():
        for name in "ab":
            made.append(name)
            yield name, {"it": lambda: None}

    measured = iter(measure(cases(), CPU, 1))
    assert next(measured)[0].case == "a"
    assert made == ["a"]


def test_saved_bytes_count_each_storage_once():
    x = torch.randn(1000, requires_grad=True)

    def candidate():
        # exp saves its result; the product saves that result twice.
        y = x.exp()
        (y * y).sum().backward()

    (row,) = rows_of({"it": candidate})
    assert row.saved_bytes == 4000


def test_peak_memory_is_what_the_call_adds():
    size = 64 << 20
    held = torch.ones(size, dtype=torch.uint8)  # before the call: not counted

    def candidate():
        return torch.ones(size, dtype=torch.uint8)[:1].item() + held[0].item()

    rows = rows_of({"it": candidate, "nothing": lambda: None})
    if rows[0].peak_bytes is None:
        pytest.skip("this system doesn't tell peak memory")
    assert rows[0].peak_bytes == pytest.approx(size, rel=0.1)
    assert rows[1].peak_bytes < size / 10


def test_markdown_has_ratios_to_ours_and_to_the_copy():
    rows = [
        Row("2 images", "ours", 0.030, 8_000_000, 9_500_000),
        Row("2 images", COPY, 0.010, 0, 0),
        Row("2 images", "peer", 1.5, 64_000_000, None),
    ]
    assert markdown(rows).splitlines() == [
        "| 2 images | time | × ours | × copy | saved for backward | peak extra memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| ours | 30 ms | 1.00 | 3.0 | 8.0 MB | 9.5 MB |",
        "| copy of the logits | 10 ms | 0.33 | 1.0 | 0.0 MB | 0.0 MB |",
        "| peer | 1,500 ms | 50.00 | 150.0 | 64.0 MB | not measured |",
    ]
    assert markdown([Row("2 images", "ours", 0.030, 0, 0)]).splitlines()[0] == (
        "| 2 images | time | × ours | peak extra memory |"
    )


def test_json_holds_the_machine_and_every_row(tmp_path):
    rows = [Row("case", "ours", 0.5, 1, None)]
    write_json(tmp_path / "figures.json", machine(CPU), rows)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["torch"] == torch.__version__
    assert figures["machine"]["threads"] == torch.get_num_threads()
    assert [Row(**row) for row in figures["rows"]] == rows
