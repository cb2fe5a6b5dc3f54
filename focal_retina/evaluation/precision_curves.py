"""Precision against recall, by class: what average precision is the average of.

Shapes: T thresholds of IoU, R recalls, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval


class PrecisionCurves(NamedTuple):
    """COCO's interpolated precision, of objects of all sizes."""

    precision: np.ndarray  # (T, R, K) in [0, 1]; -1 throughout for a class without objects
    iou_thresholds: np.ndarray  # (T,): .5, .55 … .95
    recall_thresholds: np.ndarray  # (R,): 0, .01 … 1
    class_names: Sequence[str]

    @classmethod
    def from_coco_eval(cls, coco_eval: COCOeval, class_names: Sequence[str]) -> "PrecisionCurves":
        """Of an accumulated evaluation, at the largest number of detections."""
        return cls(
            precision=coco_eval.eval["precision"][:, :, :, 0, -1],
            iou_thresholds=np.asarray(coco_eval.params.iouThrs),
            recall_thresholds=np.asarray(coco_eval.params.recThrs),
            class_names=list(class_names),
        )

    def average_precision(self) -> np.ndarray:
        """COCO's AP of each class, (K,) in [0, 1]; NaN for a class without objects."""
        has_objects = self.precision[0, 0] > -1
        return np.where(has_objects, self.precision.mean(axis=(0, 1)), np.nan)

    def save(self, path: str | Path) -> None:
        """Write a compressed .npz, which needs no pickle to be read."""
        np.savez_compressed(path, **{**self._asdict(), "class_names": np.array(self.class_names)})


def load_precision_curves(path: str | Path) -> "PrecisionCurves":
    """Read what :meth:`PrecisionCurves.save` wrote."""
    with np.load(path) as arrays:
        curves = PrecisionCurves(*(arrays[name] for name in PrecisionCurves._fields))
    return curves._replace(class_names=[str(name) for name in curves.class_names])
