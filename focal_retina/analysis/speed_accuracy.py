"""AP against inference time, as numbers: the paper's figure 2, and what was measured beside it."""

from collections.abc import Iterable
from dataclasses import dataclass

# (ms an image on an M40, AP on COCO test-dev), from the paper's table 1e; shorter sides 400 to 800.
PAPER_RETINANET = {
    "RetinaNet-50": [(64, 30.5), (72, 32.5), (98, 34.3), (121, 35.1), (153, 35.7)],
    "RetinaNet-101": [(81, 31.9), (90, 34.4), (122, 36.0), (154, 37.1), (198, 37.8)],
}
PAPER_OTHERS = {
    "YOLOv2": (25, 21.6),
    "SSD321": (61, 28.0),
    "DSSD321": (85, 28.0),
    "R-FCN": (85, 29.9),
    "SSD513": (125, 31.2),
    "DSSD513": (156, 33.2),
    "FPN FRCN": (172, 36.2),
}


@dataclass(frozen=True)
class Measurement:
    """One run at one size.

    Attributes:
        run: its name.
        size: the images' shorter side, pixels.
        milliseconds: median time of one image, from the resized image on the CPU to the final
            boxes.
        timed_images: how many images the median is over.
        metrics: the evaluator's, percent: AP, AP50, …; without those that are not defined.
        dataset: what AP and time were measured on.
        device: what the time was measured on.
        config_hash: of all that decides on the numbers; with the same they are not taken again.
    """

    run: str
    size: int
    milliseconds: float
    timed_images: int
    metrics: dict[str, float]
    dataset: str
    device: str
    config_hash: str


def upper_envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (time, AP) that no other one beats in both, by time; AP then rises, too."""
    envelope: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not envelope or point[1] > envelope[-1][1]:
            envelope.append(point)
    return envelope
