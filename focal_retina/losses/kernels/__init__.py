"""The loss family again, fast: the same numbers as the readable form, near the speed of a copy.

``blocked`` runs on any device, ``compiled`` on the CPU, ``triton`` on CUDA; :func:`dense_loss_sum`
chooses.
"""

from .dense_loss import dense_loss_sum
from .formulas import Focal, FocalStar

__all__ = ["Focal", "FocalStar", "dense_loss_sum"]
