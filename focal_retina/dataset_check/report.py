"""Data sets checked: what was found, as text and as one page; what a training leaves out."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.classes import check_classes
from ..data.coco import dataset_classes
from . import anchor_coverage
from .anchor_coverage import ENOUGH, AnchorGrid, AnchorSuggestion, Coverage
from .checks import CHECKS, Check, Indices, box_faults
from .table import (
    AnnotationTable,
    NotRecordsError,
    inspect_images,
    is_generated,
    load_table,
    record_table,
)

_logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]  # in Detectron2's format
MODES = ("error", "skip", "off")
_MAX_CASES = 10  # cases of a finding that the page and the log list; all are counted
_MAX_LINES = 6  # findings of a data set that the console shows
_TOLERATED_SHARE = 0.01  # of the objects
_WORTH_A_WARNING = 0.05  # share of the objects that reach no anchor


@dataclass(frozen=True, eq=False)
class Finding:
    """All that one check found in a data set."""

    check: Check
    degree: str  # ``error``, ``warning`` or ``note``
    indices: Indices  # of the faulty entries, in the columns that the check reads
    cases: tuple[str, ...]  # the first of them

    @property
    def count(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        return f"{self.check.title}: {self.count:,}"


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """The state of one data set. Objects are annotations that are not crowds."""

    name: str
    training: bool  # whether the set is trained on, or only evaluated
    table: AnnotationTable
    findings: list[Finding]

    def of_degree(self, *degrees: str) -> list[Finding]:
        return [x for degree in degrees for x in self.findings if x.degree == degree]

    def summary(self) -> str:
        table, empty = self.table, len(self.table.empty_images)
        return (
            f"{self.name}: {len(table.image_ids):,} images, {table.class_counts.sum():,} objects "
            f"of {len(table.class_names)} classes, {empty:,} images without objects "
            f"({empty / max(1, len(table.image_ids)):.1%}), {table.is_crowd.sum():,} crowds; "
            f"{table.files.num_decoded:,} images decoded"
        )

    def __str__(self) -> str:
        """For the console: a few lines, the errors first."""
        findings = self.of_degree("error", "warning", "note")
        more = len(findings) - _MAX_LINES
        tail = [f"and {more} kinds more, which --html FILE shows"] if more > 0 else []
        return "\n".join([self.summary(), *describe(findings[:_MAX_LINES], 1), *tail])


def describe(findings: Sequence[Finding], num_cases: int) -> list[str]:
    """A line a finding, with its first case, and a line for each further one."""
    lines = []
    for x in findings:
        lines.append(f"{x.degree}: {x}; {x.check.meaning}; {x.cases[0]}")
        lines += [f"    {case}" for case in x.cases[1:num_cases]]
    return lines


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


def check_dataset(name: str, *, training: bool = True, num_decoded: int) -> DatasetReport:
    """Check a registered data set that is trained on, or only evaluated. Every file is looked for,
    and ``num_decoded`` images are decoded; below 0: all. Errors are those of :func:`.load_table`.
    """
    table = load_table(name)
    table = replace(table, files=inspect_images(table.file_names, num_decoded))
    findings = []
    for check in CHECKS.values():
        indices, describe = check.find(table)
        if not len(indices):
            continue
        degree = check.degree
        if degree == "tolerated":
            is_many = len(indices) > _TOLERATED_SHARE * table.class_counts.sum()
            degree = "error" if is_many else "warning"
        elif degree == "needed":
            degree = "error" if training else "warning"
        cases = dict.fromkeys(describe(int(index)) for index in indices[:_MAX_CASES])
        findings.append(Finding(check, degree, indices, tuple(cases)))
    return DatasetReport(name, training, table, findings)


def check_datasets(
    train: Iterable[str], test: Iterable[str], *, mode: str, num_decoded: int
) -> list[DatasetReport]:
    """Check the data sets of a config, by their names; log the warnings, and stop at errors with a
    ValueError that has the count and the first case of each check.

    Sets that this package generates are not checked, nor are those that are not lists of records.
    ``mode`` "error" stops at every error, "skip" only at those that :func:`build_record_filter`
    does not remove, and "off" checks nothing.
    """
    if mode not in MODES:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.DATA_CHECK.MODE is {mode!r}; use one of {', '.join(MODES)}"
        )
    train = list(train)
    names = [] if mode == "off" else [x for x in [*train, *test] if not is_generated(x)]
    reports = []
    for name in dict.fromkeys(names):
        try:
            report = check_dataset(name, training=name in train, num_decoded=num_decoded)
        except NotRecordsError as error:
            _logger.warning("%s: it is not checked", error)
        else:
            _judge(report, mode)
            reports.append(report)
    return reports


def _judge(report: DatasetReport, mode: str) -> None:
    errors, warnings = report.of_degree("error"), report.of_degree("warning")
    for line in describe([*errors, *warnings], _MAX_CASES):
        _logger.info("%s: %s", report.table.source, line)
    if mode == "skip":
        warnings += [x for x in errors if x.check.skipped]
        errors = [x for x in errors if not x.check.skipped]
    for line in describe(warnings, 1):
        _logger.warning("%s: %s", report.table.source, line)
    if not errors:
        return
    summary = "; ".join(f"{error} (such as {error.cases[0]})" for error in errors)
    advice = "correct the annotations; focal-retina check --html FILE lists more cases"
    if all(error.check.skipped for error in errors):
        advice = "correct them, or leave them out with MODEL.FOCAL_RETINA.DATA_CHECK.MODE skip"
    raise ValueError(f"data set {report.name!r}: {summary}: {advice}")


def build_record_filter(cfg: CfgNode) -> Callable[[Records], Records]:
    """The function that removes unusable records of DATASETS.TRAIN where DATA_CHECK.MODE is "skip";
    it raises ValueError where nothing remains. The main process checks the sets, and the others
    take over what it found: each process of a training must call it.
    """
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK

    def unusable_images() -> set[str]:
        names = [name for name in cfg.DATASETS.TRAIN if not is_generated(name)]
        reports = [check_dataset(name, num_decoded=options.NUM_DECODED) for name in names]
        return {
            report.table.file_names[index]
            for report in reports
            for finding in report.findings
            if finding.check.skipped == "image"
            for index in finding.indices
        }

    def drop(records: Records) -> Records:
        unusable = comm.all_gather(unusable_images() if comm.is_main_process() else None)[0]
        kept = drop_unusable(records, unusable)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kept = filter_images_with_only_crowd_annotations(kept)
        if not kept:
            raise ValueError(f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: no usable image remains")
        return kept

    return drop if options.MODE == "skip" else lambda records: records


def drop_unusable(records: Records, unusable_images: Collection[str]) -> Records:
    """Records without images of these paths and without objects of a faulty box; log how many."""
    kept = [record for record in records if record["file_name"] not in unusable_images]
    dropped = Counter({"images that can't be used": len(records) - len(kept)})
    table = record_table("", kept, [])
    is_faulty = np.zeros(len(table.boxes), dtype=bool)
    for name, mask in box_faults(table.boxes, table.sizes_of_images).items():
        if CHECKS[name].skipped:
            is_faulty |= mask
            dropped[CHECKS[name].title] += int(mask.sum())
    faulty = iter(is_faulty)
    for index, record in enumerate(kept):
        objects = [x for x in record["annotations"] if not next(faulty)]
        kept[index] = {**record, "annotations": objects}
    if parts := [f"{title}: {count:,}" for title, count in dropped.items() if count]:
        _logger.warning("left out: %s; %s images remain", ", ".join(parts), f"{len(kept):,}")
    return kept


def warn_of_unreached_objects(cfg: CfgNode, reports: Iterable[DatasetReport]) -> None:
    """Warn of each training set of which more than 5% of the objects reach no anchor. Nothing is
    measured with a user's own anchor generator, or where no IoU makes anchors positive."""
    is_default = cfg.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator"
    if not is_default or 1 not in cfg.MODEL.RETINANET.IOU_LABELS[1:]:
        return
    for report in (x for x in reports if x.training):
        size = anchor_coverage.input_size(cfg, training=True)
        grid = anchor_coverage.build_anchor_grid(cfg)
        coverage = anchor_coverage.measure_coverage(report.table, grid, *size)
        if coverage.unreached_share > _WORTH_A_WARNING:
            advice = "the data check suggests other anchors"
            _logger.warning("%s: %s; %s", report.name, coverage, advice)


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
    ``all_images`` decodes all, rather than DATA_CHECK.NUM_DECODED of them."""
    grid = anchor_coverage.build_anchor_grid(cfg)
    num_decoded = -1 if all_images else cfg.MODEL.FOCAL_RETINA.DATA_CHECK.NUM_DECODED
    inspections = []
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        training = name in cfg.DATASETS.TRAIN
        size = anchor_coverage.input_size(cfg, training=training)
        report = check_dataset(name, training=training, num_decoded=num_decoded)
        coverage = anchor_coverage.measure_coverage(report.table, grid, *size)
        suggestion = None
        if training and coverage.unreached_share > ENOUGH:
            boxes, sizes, _ = anchor_coverage.resized_objects(report.table, *size)
            suggestion = anchor_coverage.suggest_anchors(boxes, sizes, grid)
        inspections.append(Inspection(report, *size, grid, coverage, suggestion))
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
