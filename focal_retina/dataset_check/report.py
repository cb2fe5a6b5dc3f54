"""Data sets checked: what was found, as text and as one page; what a training leaves out."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..data.classes import check_classes, dataset_classes
from ..files import is_generated
from . import anchor_coverage
from .checks import CHECKS, Check, Indices, box_faults
from .image_files import inspect_images
from .table import AnnotationTable, NotRecordsError, load_table, record_table

_logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]  # in Detectron2's format
_MAX_CASES = 10  # cases of a finding that the page and the log list; all are counted
_MAX_LINES = 6  # findings of a data set that the console shows
_TOLERATED_SHARE = 0.01  # of the objects
_WORTH_A_WARNING = 0.05  # share of the objects that reach no anchor


@dataclass(frozen=True, eq=False)
class Finding:
    check: Check
    degree: str  # ``error``, ``warning`` or ``note``
    indices: Indices  # of the faulty entries, in the columns that the check reads
    cases: tuple[str, ...]  # the first of them

    @property
    def count(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        return f"{self.check.title}: {self.count:,}"

    def line(self) -> str:
        return f"{self.degree}: {self}; {self.check.meaning}; {self.cases[0]}"


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """The state of one data set. Objects are annotations that are not crowds."""

    name: str
    training: bool  # whether the set is trained on, or only evaluated
    table: AnnotationTable
    findings: list[Finding]
    coverage: anchor_coverage.Coverage | None = None  # where a config was given

    def of_degree(self, *degrees: str) -> list[Finding]:
        return [x for degree in degrees for x in self.findings if x.degree == degree]

    def summary(self) -> str:
        table, empty = self.table, len(self.table.empty_images)
        num_compared = sum(len(x.files.hashes) for x in table.trained)
        compared = f" and compared with {num_compared:,} of the training" if table.trained else ""
        return (
            f"{self.name}: {len(table.image_ids):,} images, {table.class_counts.sum():,} objects "
            f"of {len(table.class_names)} classes, {empty:,} images without objects "
            f"({empty / max(1, len(table.image_ids)):.1%}), {table.is_crowd.sum():,} crowds; "
            f"{len(table.files.sizes) + len(table.files.unreadable):,} images decoded{compared}"
        )

    def __str__(self) -> str:
        """For the console: a few lines, the errors first."""
        findings = self.of_degree("error", "warning", "note")
        lines = [self.summary(), *(x.line() for x in findings[:_MAX_LINES])]
        if len(findings) > _MAX_LINES:
            lines.append(f"and {len(findings) - _MAX_LINES} kinds more, which --html FILE shows")
        if self.coverage:
            lines.append(f"anchors: {self.coverage}")
            if better := self.coverage.suggestion:
                lines.append(f"better ({better.unreached_share:.1%}): {better.as_options()}")
        return "\n".join(lines)


def check_dataset(
    name: str, *, training: bool = True, num_decoded: int, trained: Sequence[AnnotationTable] = ()
) -> DatasetReport:
    """Errors and ``num_decoded`` are those of :func:`.inspect_images` and :func:`.load_table`."""
    table = load_table(name)
    table = replace(table, files=inspect_images(table.file_names, num_decoded), trained=trained)
    findings = []
    for check in CHECKS.values():
        indices, describe = check.find(table)
        if not len(indices):
            continue
        is_many = len(indices) > _TOLERATED_SHARE * table.class_counts.sum()
        is_grave = {"error": True, "tolerated": is_many, "needed": training}.get(check.degree)
        degree = "error" if is_grave else "note" if check.degree == "note" else "warning"
        cases = dict.fromkeys(describe(int(index)) for index in indices[:_MAX_CASES])
        findings.append(Finding(check, degree, indices, tuple(cases)))
    return DatasetReport(name, training, table, findings)


def check_datasets(
    train: Collection[str], test: Collection[str], *, num_decoded: int, mode: str | None = None
) -> list[DatasetReport]:
    """Check data sets, each once; those that are only evaluated are compared with the training's.

    With DATA_CHECK.MODE as ``mode``, as before a training: generated sets, and those that are not
    lists of records, are left out; warnings are logged; a ValueError says which errors there are,
    or in mode "skip" such that :func:`build_record_filter` does not remove.
    """
    if mode not in (None, "error", "skip", "off"):
        key = "MODEL.FOCAL_RETINA.DATA_CHECK.MODE"
        raise ValueError(f"{key} is {mode!r}; use one of error, skip, off")
    reports: list[DatasetReport] = []
    for name in dict.fromkeys([] if mode == "off" else [*train, *test]):
        if mode and is_generated(name):
            continue
        training = name in train
        trained = [] if training else [x.table for x in reports if x.training]
        how: Any = {"training": training, "num_decoded": num_decoded, "trained": trained}
        try:
            reports.append(check_dataset(name, **how))
        except NotRecordsError as error:
            if not mode:
                raise
            _logger.warning("%s: it is not checked", error)
            continue
        if mode:
            _judge(reports[-1], mode)
    return reports


def _judge(report: DatasetReport, mode: str) -> None:
    errors, warnings = report.of_degree("error"), report.of_degree("warning")
    for finding in [*errors, *warnings]:
        _logger.debug("%s: %s", report.name, "\n    ".join([finding.line(), *finding.cases[1:]]))
    if mode == "skip":
        warnings += [x for x in errors if x.check.skipped]
        errors = [x for x in errors if not x.check.skipped]
    for warning in warnings:
        _logger.warning("%s: %s", report.name, warning.line())
    if not errors:
        return
    summary = "; ".join(f"{error} (such as {error.cases[0]})" for error in errors)
    advice = "correct the annotations; focal-retina check --html FILE lists more cases"
    if all(error.check.skipped for error in errors):
        advice = "correct them, or leave them out with MODEL.FOCAL_RETINA.DATA_CHECK.MODE skip"
        if not report.training:
            advice += "; a faulty box of a test set then counts as missed, as in Detectron2"
    raise ValueError(f"data set {report.name!r}: {summary}: {advice}")


def build_record_filter(cfg: CfgNode) -> Callable[[Records], Records]:
    """What removes unusable records of DATASETS.TRAIN where DATA_CHECK.MODE is "skip"; ValueError
    where nothing remains. Each process must call it: what the main one finds holds for all."""
    options = cfg.MODEL.FOCAL_RETINA.DATA_CHECK

    def drop(records: Records) -> Records:
        unusable: set[str] = set()
        names = [x for x in cfg.DATASETS.TRAIN if comm.is_main_process() and not is_generated(x)]
        for report in [check_dataset(x, num_decoded=options.NUM_DECODED) for x in names]:
            for finding in report.findings:
                if finding.check.skipped == "image":
                    unusable.update(report.table.file_names[i] for i in finding.indices)
        kept = _drop_unusable(records, comm.all_gather(unusable)[0])
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kept = filter_images_with_only_crowd_annotations(kept)
        if not kept:
            raise ValueError(f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: no usable image remains")
        return kept

    return drop if options.MODE == "skip" else lambda records: records


def _drop_unusable(records: Records, unusable_images: Collection[str]) -> Records:
    """Records without images of these paths and without objects of a faulty box; log how many."""
    kept = [x for x in records if os.fspath(x["file_name"]) not in unusable_images]
    table = record_table("", kept, [])
    found = box_faults(table.boxes, table.sizes_of_images)
    faults = {CHECKS[x].title: mask for x, mask in found.items() if CHECKS[x].skipped}
    dropped = {"images that can't be used": len(records) - len(kept)}
    dropped |= {title: mask.sum() for title, mask in faults.items()}
    if parts := [f"{title}: {count:,}" for title, count in dropped.items() if count]:
        _logger.warning("left out: %s; %s images remain", ", ".join(parts), f"{len(kept):,}")
    is_faulty = iter(np.any(list(faults.values()), axis=0))
    return [
        {**record, "annotations": [x for x in record["annotations"] if not next(is_faulty)]}
        for record in kept
    ]


def measure(
    cfg: CfgNode, reports: Iterable[DatasetReport], *, suggest: bool = False
) -> list[DatasetReport]:
    """Add the coverage by the anchors of a RetinaNet; ``suggest`` others for training sets.
    ValueError: as of :func:`.build_anchor_grid`."""
    grid = anchor_coverage.build_anchor_grid(cfg)
    measured = []
    for report in reports:
        size = anchor_coverage.input_size(cfg, training=report.training)
        options = grid, *size, suggest and report.training
        coverage = anchor_coverage.measure_coverage(report.table, *options)
        measured.append(replace(report, coverage=coverage))
    return measured


def warn_of_unreached_objects(cfg: CfgNode, reports: Iterable[DatasetReport]) -> None:
    """Warn of each training set of which more than 5% of the objects reach no anchor."""
    trained = [x for x in reports if x.training]
    try:
        measured = measure(cfg, trained) if trained else []
    except ValueError as error:
        _logger.info("anchors are not measured: %s", error)
        return
    for x in measured:
        if x.coverage and x.coverage.unreached_share > _WORTH_A_WARNING:
            _logger.warning("%s: %s; the data check suggests other anchors", x.name, x.coverage)


def config_problems(cfg: CfgNode) -> list[str]:
    """What :func:`.check_classes` objects to; an error where a set is unknown or can't be read."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        dataset_classes(name)
    try:
        check_classes(cfg)
    except ValueError as error:
        return [str(error)]
    return []


def write_html(
    reports: Sequence[DatasetReport], problems: Sequence[str], config_file: str, path: Path
) -> None:
    """Write one file that needs no other, for a light and a dark screen."""
    loader = PackageLoader(__package__)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    template = environment.get_template("dataset_check.html.j2")
    values = {"reports": reports, "problems": problems, "config_file": config_file}
    anchors = {"sizes": anchor_coverage.SIZE_BUCKETS, "enough": anchor_coverage.ENOUGH}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(**values, **anchors), encoding="utf-8")
