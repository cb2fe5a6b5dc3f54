"""The data sets of a config, checked and measured, as text and as one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.classes import check_classes
from ..data.coco import dataset_classes
from . import anchor_coverage
from .anchor_coverage import ENOUGH, AnchorGrid, AnchorSuggestion, Coverage
from .report import DatasetReport, check_dataset


@dataclass(frozen=True)
class Inspection:
    """What is known of one data set under one config."""

    report: DatasetReport
    short_edge: int
    max_size: int
    grid: AnchorGrid
    coverage: Coverage
    suggestion: AnchorSuggestion | None
    """For training, where over 1% of the objects reach no anchor and others would do better."""

    def __str__(self) -> str:
        lines = [str(self.report), f"anchors: {self.coverage}"]
        if self.suggestion:
            share = self.suggestion.unreached_share
            lines.append(f"better ({share:.1%}): {self.suggestion.as_options()}")
        return "\n".join(lines)


def config_problems(cfg: CfgNode) -> list[str]:
    """What is wrong between the data sets and MODEL.RETINANET.NUM_CLASSES, or among the sets; an
    error where a set is not registered, or can't be read at all."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    for name in names:
        dataset_classes(name)
    try:
        check_classes(cfg)
    except ValueError as error:
        return [str(error)]
    return []


def inspect_datasets(cfg: CfgNode, *, all_images: bool = False) -> list[Inspection]:
    """Check and measure the sets of DATASETS.TRAIN and DATASETS.TEST of a RetinaNet, each once.

    ``all_images`` decodes all, rather than DATA_CHECK.NUM_DECODED of them. Errors are those of
    :func:`~focal_retina.dataset_check.check_dataset`.
    """
    grid = anchor_coverage.build_anchor_grid(cfg)
    num_decoded = -1 if all_images else cfg.MODEL.FOCAL_RETINA.DATA_CHECK.NUM_DECODED
    inspections = []
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        training = name in cfg.DATASETS.TRAIN
        short_edge, max_size = anchor_coverage.input_size(cfg, training=training)
        report = check_dataset(name, training=training, num_decoded=num_decoded)
        coverage = anchor_coverage.measure_coverage(report.table, grid, short_edge, max_size)
        suggestion = None
        if training and coverage.unreached_share > ENOUGH:
            boxes, sizes, _ = anchor_coverage.resized_objects(report.table, short_edge, max_size)
            suggestion = anchor_coverage.suggest_anchors(boxes, sizes, grid)
        inspections.append(Inspection(report, short_edge, max_size, grid, coverage, suggestion))
    return inspections


def write_html(
    inspections: Sequence[Inspection], problems: Sequence[str], config_file: str, path: Path
) -> None:
    """Write one file that needs no other, for a light and a dark screen."""
    loader = PackageLoader(__package__)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    page = environment.get_template("dataset_check.html.j2").render(
        inspections=inspections,
        problems=problems,
        config_file=config_file,
        sizes=anchor_coverage.SIZE_BUCKETS,
        enough=ENOUGH,
    )
    path.write_text(page, encoding="utf-8")
