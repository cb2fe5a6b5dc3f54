"""Photograph-like backgrounds and camera effects for the generated shapes data set.

An image is a float32 array (H, W, 3) of RGB values in [0, 1] until `develop` quantises it.
Every function draws its randomness from the generator that it is given, and nothing else.
Random scalars stay Python floats (`math`, not `np`): NumPy's would make float64 of the images.
"""

import colorsys
import math

import cv2
import numpy as np

from .shapes_outlines import Rng


def random_color(
    rng: Rng, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A colour (3,) of any hue, with saturation and value uniform in the given ranges."""
    return np.array(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)),
        dtype=np.float32,
    )


def value_noise(rng: Rng, width: int, height: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise (H, W) in about [0, 1]: a random grid of (x, y) cells, interpolated."""
    grid = rng.random((cells[1] + 1, cells[0] + 1), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _clouds(rng: Rng, width: int, height: int) -> np.ndarray:
    """Octaves of noise whose amplitude falls with frequency, as natural images have it."""
    roughness = rng.uniform(0.45, 0.75)
    cells, amplitude, field = 2, 1.0, np.zeros((height, width), np.float32)
    while cells < width // 2:
        field += amplitude * value_noise(rng, width, height, (cells, cells))
        cells, amplitude = 2 * cells, amplitude * roughness
    return field


def _grain(rng: Rng, width: int, height: int) -> np.ndarray:
    """Noise stretched along one direction: wood, brushed metal, water."""
    side = int(np.hypot(width, height)) + 1
    field = value_noise(rng, side, side, (2, int(rng.integers(12, 40))))
    field += 0.5 * value_noise(rng, side, side, (5, int(rng.integers(40, 80))))
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 180), 1.0)
    field = cv2.warpAffine(field, turn, (side, side), borderMode=cv2.BORDER_REFLECT)
    top, left = (side - height) // 2, (side - width) // 2
    return field[top : top + height, left : left + width]


def _weave(rng: Rng, width: int, height: int) -> np.ndarray:
    """Two crossed waves, distorted by noise: fabric, tiles, blinds."""
    x, y = coordinates(width, height)
    angle, period = rng.uniform(0, math.pi), rng.uniform(7, 22)
    bend = rng.uniform(0, 10) * value_noise(rng, width, height, (3, 3))
    u = math.cos(angle) * x + math.sin(angle) * y + bend
    v = math.cos(angle) * y - math.sin(angle) * x + bend
    frequency = 2 * math.pi / period
    wave = np.sin(u * frequency) + rng.uniform(0, 1) * np.sin(v * frequency)
    return wave * rng.uniform(0.15, 0.45) + _clouds(rng, width, height)


_TEXTURES = (_clouds, _grain, _weave)


def coordinates(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates x (1, W) and y (H, 1), ready to broadcast."""
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    return x, y


def _texture(rng: Rng, width: int, height: int) -> np.ndarray:
    """One textured surface: a scalar field, coloured along a short random palette."""
    field = _TEXTURES[rng.integers(len(_TEXTURES))](rng, width, height)
    low, high = field.min(), field.max()
    base = random_color(rng, (0.05, 0.5), (0.3, 0.85))
    # The brightness of one material varies far more than its hue.
    brightness = np.exp(rng.normal(0, rng.uniform(0.1, 0.35), (4, 1)))
    stops = np.clip(base * brightness + rng.normal(0, 0.035, (4, 3)), 0, 1)
    position = (field - low) / (high - low)
    knots = np.linspace(0, 1, len(stops))
    ramp = np.linspace(0, 1, 256)
    lut = np.stack([np.interp(ramp, knots, stops[:, c]) for c in range(3)], axis=1)
    return lut.astype(np.float32)[(position * 255).astype(np.uint8)]


def paint_background(rng: Rng, width: int, height: int) -> np.ndarray:
    """One surface, or two that meet along a line (a table's edge, a horizon, a wall's corner)."""
    image = _texture(rng, width, height)
    if rng.random() < 0.5:
        x, y = coordinates(width, height)
        angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3) * min(width, height)
        distance = math.cos(angle) * (x - width / 2) + math.sin(angle) * (y - height / 2) - offset
        side = np.clip(distance + 0.5, 0, 1)[..., None]
        # The farther surface is darkened beside the edge, as if the nearer one stood above it.
        shade = 1 - rng.uniform(0, 0.4) * np.exp(-np.abs(distance) / rng.uniform(3, 12))[..., None]
        image = image * (1 - side) * shade + _texture(rng, width, height) * side
    return image


def draw_lines(rng: Rng, image: np.ndarray, count: int) -> None:
    """Draw `count` thin straight or bent lines (wires, cracks, seams) into `image`, in place."""
    height, width = image.shape[:2]
    for _ in range(count):
        points = rng.uniform(-0.1, 1.1, (3, 2)) * (width, height)
        t = np.linspace(0, 1, 24)[:, None]
        if rng.random() < 0.5:
            curve = points[0] + (points[2] - points[0]) * t
        else:
            curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
        mask = np.zeros((height, width), np.uint8)
        fixed_point = np.round(curve * 16).astype(np.int32)
        thickness = int(rng.integers(1, 3))
        cv2.polylines(mask, [fixed_point], False, 255, thickness, cv2.LINE_AA, shift=4)
        alpha = mask[..., None] * np.float32(rng.uniform(0.3, 0.9) / 255)
        image += alpha * (random_color(rng, (0, 0.5), (0.05, 0.95)) - image)


def develop(rng: Rng, image: np.ndarray, noise: float) -> np.ndarray:
    """Uneven light, tint, exposure, vignette, defocus and sensor noise.

    Args:
        image: (H, W, 3) in [0, 1].
        noise: largest standard deviation of the sensor noise, of the full range 1.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    height, width = image.shape[:2]
    x, y = coordinates(width, height)
    x, y = x / width - 0.5, y / height - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    light = 1 + rng.uniform(0, 0.6) * (math.cos(angle) * x + math.sin(angle) * y)
    light *= 1 - rng.uniform(0, 0.8) * (x**2 + y**2)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    image = np.clip(image * light[..., None] * tint, 0, 1) ** rng.uniform(0.75, 1.35)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    # Sensor noise is mostly grey: the colour channels share half of its variance.
    grain = rng.standard_normal((height, width, 3), dtype=np.float32)
    grain += rng.standard_normal((height, width, 1), dtype=np.float32)
    image = image + rng.uniform(0.1, 1) * noise * np.float32(0.5**0.5) * grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
