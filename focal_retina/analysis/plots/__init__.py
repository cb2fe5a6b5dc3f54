"""Pictures as PNG files. The only room that knows matplotlib, and it needs no display."""

from .detections import draw_detection_sheet
from .loss_distribution import draw_loss_cdfs, draw_loss_shares
from .losses import draw_loss_figure
from .pr_curves import draw_pr_curves
from .speed_accuracy import draw_speed_accuracy
from .training import draw_training_curves

__all__ = [
    "draw_detection_sheet",
    "draw_loss_cdfs",
    "draw_loss_figure",
    "draw_loss_shares",
    "draw_pr_curves",
    "draw_speed_accuracy",
    "draw_training_curves",
]
