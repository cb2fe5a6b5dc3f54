"""Figure 2: the envelope, and the paper's points."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from focal_retina.analysis.speed_accuracy import (
    PAPER_OTHERS,
    PAPER_RETINANET,
    upper_envelope,
)

points = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1)


@given(points)
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
    assert PAPER_RETINANET["RetinaNet-50"][2] == (98, 34.3)
