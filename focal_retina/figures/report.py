"""What a training leaves for the eye, beside its checkpoints and numbers."""

import logging
from pathlib import Path

from detectron2.config import CfgNode

from ..evaluation.coco_evaluator import PRECISION_CURVES_FILE, load_precision_curves
from .detections import draw_detections
from .pr_curves import draw_pr_curves
from .training import draw_training_curves, read_metrics

_logger = logging.getLogger(__name__)


def write_training_report(cfg: CfgNode) -> None:
    """Write training.png, and of each evaluated data set detections.png and pr_curves.png, to
    cfg.OUTPUT_DIR.

    The log then says where everything is. With several sets in DATASETS.TEST the names hold their
    set's: detections_NAME.png. Precision and recall are those of COCO's metrics. A data set that
    is evaluated by others has no pr_curves.png.
    """
    output = Path(cfg.OUTPUT_DIR)
    draw_training_curves(read_metrics(output / "metrics.json"), output / "training.png")
    lines = []
    for name in cfg.DATASETS.TEST:
        suffix = f"_{name}" if len(cfg.DATASETS.TEST) > 1 else ""
        folder = output / "inference" / name
        # One file, called coco_… or lvis_instances_results.json after the evaluator.
        for results in folder.glob("*_instances_results.json"):
            picture = output / f"detections{suffix}.png"
            draw_detections(name, results, picture)
            lines.append(f"detections beside ground truth  {picture}")
        if (folder / PRECISION_CURVES_FILE).exists():
            precision = load_precision_curves(folder / PRECISION_CURVES_FILE)
            picture = output / f"pr_curves{suffix}.png"
            draw_pr_curves(precision, f"{name}: precision and recall", picture)
            lines.append(f"precision against recall        {picture}")
    lines += [
        f"training curves                 {output / 'training.png'}",
        f"numbers, one json a line        {output / 'metrics.json'}",
        f"TensorBoard                     tensorboard --logdir {output}",
    ]
    _logger.info("Where to look:\n%s", "\n".join(lines))
