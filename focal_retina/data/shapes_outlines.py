"""The shapes of the generated data set: an outline for each class, and distractors of no class.

A contour is an array (P, 2) of points (x, y) in any unit: who draws it sets size and direction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Outline:
    """Contours filled by the even-odd rule, or, with a stroke, drawn as open strokes.

    `stroke` is the strokes' width as a fraction of the drawn size.
    """

    contours: tuple[np.ndarray, ...]
    stroke: float = 0.0


def _on_circle(angles: np.ndarray, radius: float | np.ndarray = 1.0) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1) * np.reshape(radius, (-1, 1))


def _regular(corners: int, radius: float | np.ndarray = 1.0, first: float = -0.25) -> np.ndarray:
    """Corners evenly round a circle, the first one at `first` turns: at the top, if not said."""
    return _on_circle((np.arange(corners) / corners + first) * (2 * np.pi), radius)


# The classes, upright, in the order of their ids.
CLASS_OUTLINES = {
    "ring": Outline((_regular(48), _regular(48, 0.55))),
    "triangle": Outline((_regular(3),)),
    "square": Outline((_regular(4, first=0.125),)),
    "star": Outline((_regular(10, np.tile([1.0, 0.42], 5)),)),
}
CLASS_NAMES = tuple(CLASS_OUTLINES)


def _bar(rng: Rng) -> Outline:
    half_width = rng.uniform(0.12, 0.3)
    return Outline((np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, half_width),))


def _blob(rng: Rng) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 1 + sum(
        rng.uniform(0.1, 0.3) * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3)
    )
    return Outline((_on_circle(angles, radius),))


def _half_disc(rng: Rng) -> Outline:
    return Outline((_on_circle(np.linspace(0, np.pi * rng.uniform(0.8, 1.15), 24)),))


def _arc(rng: Rng) -> Outline:
    angles = np.linspace(0, np.pi * rng.uniform(0.5, 1.2), 24)
    return Outline((_on_circle(angles),), rng.uniform(0.1, 0.25))


def _scribble(rng: Rng) -> Outline:
    """A row of random strokes, as handwriting looks from afar."""
    letters = range(rng.integers(3, 6))
    return Outline(
        tuple(rng.uniform(0, 1, (4, 2)) * (0.8, 1.3) + (k, 0) for k in letters),
        rng.uniform(0.06, 0.12),
    )


# Shapes of no class: each call makes another one.
DISTRACTORS: tuple[Callable[[Rng], Outline], ...] = (_bar, _blob, _half_disc, _arc, _scribble)
