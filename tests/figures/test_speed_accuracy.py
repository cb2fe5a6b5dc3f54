"""Figure 2: what is measured, what is not measured again, and the envelope."""

import itertools

import pytest
from helpers import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from focal_retina.figures import speed_accuracy
from focal_retina.figures.speed_accuracy import (
    PAPER_OTHERS,
    PAPER_RETINANET,
    Measurement,
    measure_runs,
    parse_run,
    read_measurements,
    upper_envelope,
)


def test_a_run_is_a_folder_or_a_config_and_weights(tmp_path):
    assert parse_run("a=b.yaml:detectron2://x/y.pkl") == ("a", "b.yaml", "detectron2://x/y.pkl")
    assert parse_run(f"a={tmp_path}") == ("a", str(tmp_path), "")


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Call measure_runs with a stand-in for the measuring; returns (results, what was measured)."""
    weights = tmp_path / "model.pth"
    weights.write_text("weights")
    config = tmp_path / "config.yaml"
    base = CONFIGS / "Base-FocalRetinaNet.yaml"
    config.write_text(f"_BASE_: {base}\nDATASETS: {{TEST: [focal_shapes_val]}}\n")
    measured = []

    def stand_in(cfg, name, size, num_images, digest):
        assert (size, round(size * 5 / 3)) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        assert str(tmp_path / name / str(size)) == cfg.OUTPUT_DIR
        if name == "broken":
            raise KeyboardInterrupt
        measured.append((name, size))
        return Measurement(name, size, 10.0, 2, {"AP": 50.0}, "set", "device", digest)

    monkeypatch.setattr(speed_accuracy, "_measure", stand_in)

    def call(names, sizes, *opts, images=2):
        measured.clear()
        opts = ["INPUT.MIN_SIZE_TEST", 600, "INPUT.MAX_SIZE_TEST", 1000, *opts]
        opts += ["MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.META_ARCHITECTURE", "FocalRetinaNet"]
        runs = [(name, str(config), str(weights)) for name in names]
        results = measure_runs(runs, sizes, tmp_path, num_images=images, opts=opts)
        return [(x.run, x.size) for x in results], list(measured)

    call.weights = weights
    return call


def test_only_what_is_new_or_changed_is_measured(measure, tmp_path):
    both, once = [("a", 400), ("a", 500)], [("a", 400)]
    assert measure(["a"], [400, 500]) == (both, both)
    assert measure(["a"], [400, 500]) == (both, [])
    assert measure(["a"], [400], "MODEL.RETINANET.NMS_THRESH_TEST", 0.6) == (both, once)
    assert measure(["a"], [400]) == (both, once)
    assert measure(["a"], [400], images=3) == (both, once)
    measure.weights.write_text("trained for longer")
    assert measure(["a"], [400], images=3) == (both, once)
    # Another run adds to the figure, and an interrupted call keeps what it measured.
    with pytest.raises(KeyboardInterrupt):
        measure(["b", "broken"], [400])
    assert measure(["b"], [400]) == ([*both, ("b", 400)], [])


@pytest.mark.parametrize("content", ["", "[]", '{"measurements": [{"run": "a"}]}'])
def test_a_foreign_json_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "speed_accuracy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no measurements"):
        read_measurements(path)
    assert path.read_text() == content


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1))
def test_envelope_beats_or_holds_every_point(points):
    envelope = upper_envelope(points)
    assert set(envelope) <= set(points)
    for (time, ap), (later, higher) in itertools.pairwise(envelope):
        assert time < later and ap < higher
    for time, ap in points:
        assert any(t <= time and a >= ap for t, a in envelope)


def test_retinanet_is_the_papers_envelope_from_64_ms_on():
    """Section 5.3: above 25 AP it forms the upper envelope of all systems."""
    retinanet = [p for curve in PAPER_RETINANET.values() for p in curve]
    envelope = upper_envelope([*retinanet, *PAPER_OTHERS.values()])
    assert set(envelope) - set(retinanet) == {PAPER_OTHERS["YOLOv2"], PAPER_OTHERS["SSD321"]}
    assert max(retinanet)[1] == 37.8
