"""Pictures as PNG files. The only room that knows matplotlib, and it needs no display."""

from .detections import draw_detection_sheet
from .training import draw_training_curves

__all__ = ["draw_detection_sheet", "draw_training_curves"]
