"""The data sets of a config, checked and measured, as text and as one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.coco import check_num_classes, dataset_classes
from .anchor_coverage import (
    SIZE_BUCKETS,
    Coverage,
    build_anchor_grid,
    input_size,
    measure_coverage,
    resized_objects,
)
from .anchor_suggestion import ENOUGH, AnchorSuggestion, suggest_anchors
from .report import DatasetReport, check_dataset


@dataclass(frozen=True)
class Inspection:
    """What is known of one data set under one config."""

    report: DatasetReport
    short_edge: int
    max_size: int
    num_anchors: int  # a cell, on the first level
    coverage: Coverage
    suggestion: AnchorSuggestion | None
    """For training, where over 1% of the objects reach no anchor and others would do better."""

    @property
    def has_errors(self) -> bool:
        return bool(self.report.of_degree("error"))

    @property
    def grid_is_too_coarse(self) -> bool:
        """Whether no anchors, of those that were tried, reach 99% of the objects."""
        return (self.suggestion or self.coverage).unreached_share > ENOUGH

    def __str__(self) -> str:
        lines = [str(self.report), f"anchors: {self.coverage}"]
        if self.suggestion:
            share = self.suggestion.unreached_share
            lines.append(f"better ({share:.1%}): {self.suggestion.as_options()}")
        return "\n".join(lines)


def config_problems(cfg: CfgNode) -> list[str]:
    """What is wrong between the data sets and MODEL.RETINANET.NUM_CLASSES, or among the sets.

    Raises:
        ValueError, FileNotFoundError: a set is not registered, or can't be read at all.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    for name in names:
        dataset_classes(name)
    try:
        check_num_classes(cfg.MODEL.RETINANET.NUM_CLASSES, names)
    except ValueError as error:
        return [str(error)]
    return []


def inspect_datasets(cfg: CfgNode, *, all_images: bool = False) -> list[Inspection]:
    """Check and measure the sets of DATASETS.TRAIN and DATASETS.TEST, each once.

    Args:
        cfg: of a RetinaNet.
        all_images: decode all images rather than DATA_CHECK.NUM_DECODED of them.

    Raises:
        ValueError: a set is not registered, or its annotation file is not COCO json.
        FileNotFoundError: it has no annotation file.
    """
    grid = build_anchor_grid(cfg)
    num_decoded = -1 if all_images else cfg.MODEL.FOCAL_RETINA.DATA_CHECK.NUM_DECODED
    inspections = []
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        training = name in cfg.DATASETS.TRAIN
        short_edge, max_size = input_size(cfg, training=training)
        report = check_dataset(name, training=training, num_decoded=num_decoded)
        coverage = measure_coverage(report.table, grid, short_edge, max_size)
        suggestion = None
        if training and coverage.unreached_share > ENOUGH:
            boxes, sizes, _ = resized_objects(report.table, short_edge, max_size)
            suggestion = suggest_anchors(boxes, sizes, grid)
        num_anchors = len(grid.cell_anchors[0])
        inspections.append(
            Inspection(report, short_edge, max_size, num_anchors, coverage, suggestion)
        )
    return inspections


def write_html(
    inspections: Sequence[Inspection], problems: Sequence[str], config_file: str, path: Path
) -> None:
    """Write one file that needs no other, for a light and a dark screen.

    Raises:
        OSError: it can't be written.
    """
    environment = Environment(
        loader=PackageLoader(__package__), undefined=StrictUndefined, autoescape=True
    )
    page = environment.get_template("dataset_check.html.j2").render(
        inspections=inspections, problems=problems, config_file=config_file, sizes=SIZE_BUCKETS
    )
    path.write_text(page, encoding="utf-8")
