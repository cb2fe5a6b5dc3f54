"""The parameters of the generated shapes data set."""

from dataclasses import dataclass

# To be raised with every change that alters an image or a box, so that old data are not used.
GENERATOR_VERSION = 1

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Everything that decides the data set's content. Lengths in pixels, colours in [0, 1]."""

    seed: int = 2017
    num_train: int = 2000
    num_val: int = 300
    num_test: int = 300
    image_sizes: tuple[tuple[int, int], ...] = ((160, 128), (128, 160))
    """(width, height) of the images, drawn with equal chance."""
    empty_fraction: float = 0.06
    """Share of images without any object."""
    max_objects: int = 6
    """The other images hold 1 … max_objects, with equal chance."""
    min_size: float = 12.0
    max_size: float = 60.0
    """Range of sqrt(box area), log-uniform, so that small objects are the many."""
    max_stretch: float = 1.25
    """Largest ratio by which an object is stretched along one axis before it is turned."""
    max_turn: float = 30.0
    """Largest angle between an object and its upright position, in degrees."""
    max_truncation: float = 0.15
    """Largest share of a box's side that the image's border may cut off."""
    min_visible: float = 0.6
    """Share of an object's area inside the image that stays visible."""
    max_distractors: int = 4
    """Shapes of no class in an image, 0 … max_distractors with equal chance."""
    max_lines: int = 4
    """Thin lines in the background, 0 … max_lines with equal chance."""
    min_contrast: float = 0.45
    """RGB distance sought between a shape's colour and the mean of what it covers."""
    noise: float = 0.025
    """Largest standard deviation of the sensor noise."""
    jpeg_quality: int = 92

    def num_images(self, split: str) -> int:
        """Number of images of one of SPLITS."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]
