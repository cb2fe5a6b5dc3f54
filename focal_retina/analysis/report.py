"""What a training leaves for the eye, beside its checkpoints and numbers."""

import json
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..evaluation.coco_evaluator import PRECISION_CURVES_FILE
from ..evaluation.precision_curves import load_precision_curves
from .detections import break_even_threshold, compare_images
from .plots import draw_detection_sheet, draw_pr_curves, draw_training_curves
from .training_metrics import read_metrics

_logger = logging.getLogger(__name__)

_MAX_IMAGES = 12


def write_detection_sheet(dataset_name: str, results_json: Path, out_png: Path) -> None:
    """Draw a data set's images with their ground truth and with detections.

    As many detections are shown as the data set has objects, those of the highest scores.

    Args:
        dataset_name: a registered data set.
        results_json: detections in COCO's results format, as COCOEvaluator writes them.
        out_png: the file to write.
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    predictions = json.loads(results_json.read_text())
    threshold = break_even_threshold(predictions, dataset_dicts)
    comparisons = compare_images(
        dataset_dicts,
        predictions,
        metadata.get("thing_dataset_id_to_contiguous_id"),
        max_images=_MAX_IMAGES,
        score_threshold=threshold,
    )
    title = f"{dataset_name}: detections with a score of {threshold:.2f} or more"
    draw_detection_sheet(comparisons, metadata.thing_classes, title, out_png)


def write_training_report(cfg: CfgNode) -> None:
    """Write training.png, and of each evaluated data set detections.png and pr_curves.png, to
    cfg.OUTPUT_DIR.

    The log then says where everything is. With several sets in DATASETS.TEST the names hold their
    set's: detections_NAME.png. Precision and recall are those of COCO's metrics; a data set that
    is evaluated by others has no pr_curves.png.
    """
    output = Path(cfg.OUTPUT_DIR)
    curves = output / "training.png"
    draw_training_curves(read_metrics(output / "metrics.json"), curves)

    sheets, pr_curves = [], []
    for name in cfg.DATASETS.TEST:
        suffix = f"_{name}" if len(cfg.DATASETS.TEST) > 1 else ""
        folder = output / "inference" / name
        # One file, called coco_… or lvis_instances_results.json after the evaluator.
        for results in folder.glob("*_instances_results.json"):
            sheets.append(output / f"detections{suffix}.png")
            write_detection_sheet(name, results, sheets[-1])
        if (folder / PRECISION_CURVES_FILE).exists():
            precision = load_precision_curves(folder / PRECISION_CURVES_FILE)
            pr_curves.append(output / f"pr_curves{suffix}.png")
            draw_pr_curves(precision, f"{name}: precision and recall", pr_curves[-1])

    lines = [
        *(f"detections beside ground truth  {sheet}" for sheet in sheets),
        *(f"precision against recall        {picture}" for picture in pr_curves),
        f"training curves                 {curves}",
        f"numbers, one json a line        {output / 'metrics.json'}",
        f"TensorBoard                     tensorboard --logdir {output}",
    ]
    _logger.info("Where to look:\n%s", "\n".join(lines))
