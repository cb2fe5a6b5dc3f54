"""Checking data sets: what was found, whether a training may start, and what it leaves out."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm

from .checks import CHECKS, Check, Indices, box_faults
from .table import (
    AnnotationTable,
    NotRecordsError,
    build_table,
    inspect_images,
    is_generated,
    load_table,
)

_logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]  # in Detectron2's format
MODES = ("error", "skip", "off")
_MAX_CASES = 10  # cases of a finding that are listed; all are counted
_TOLERATED_SHARE = 0.01  # of the objects


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

    def of_degree(self, degree: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.degree == degree]

    def describe(self, findings: Sequence[Finding]) -> str:
        """One line a finding, and one a case."""
        lines = []
        for finding in findings:
            lines.append(f"{self.table.source}: {finding}; {finding.check.meaning}")
            lines += [f"    {case}" for case in finding.cases]
            if finding.count > len(finding.cases):
                lines.append(f"    and {finding.count - len(finding.cases):,} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """What the set holds, in one line."""
        table = self.table
        empty = len(table.empty_images)
        return (
            f"{self.name}: {len(table.image_ids):,} images, {table.class_counts.sum():,} objects "
            f"of {len(table.class_names)} classes, {empty:,} images without objects "
            f"({empty / max(1, len(table.image_ids)):.1%}), {table.is_crowd.sum():,} crowds; "
            f"{table.files.num_decoded:,} images decoded"
        )

    def __str__(self) -> str:
        lines = [self.summary()]
        for degree in ("error", "warning", "note"):
            if findings := self.of_degree(degree):
                lines.append(f"{degree}: {self.describe(findings)}")
        return "\n".join(lines)


def check_dataset(name: str, *, training: bool = True, num_decoded: int) -> DatasetReport:
    """Check a registered data set that is trained on, or only evaluated.

    Every file is looked for, and ``num_decoded`` images are decoded; below 0: all.

    Raises:
        ValueError, FileNotFoundError: as :func:`~focal_retina.dataset_check.table.load_table`.
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
    """Check the data sets of a config, by their names; log the warnings, and stop at errors.

    Sets that this package generates are not checked, nor are those that are not lists of records.
    ``mode`` "error" stops at every error, "skip" only at those that :func:`build_record_filter`
    does not remove, and "off" checks nothing.

    Raises:
        ValueError: there are errors; the message gives counts and the first case of each check.
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
    if mode == "skip":
        warnings += [x for x in errors if x.check.skipped]
        errors = [x for x in errors if not x.check.skipped]
    if warnings:
        _logger.warning(report.describe(warnings))
    if not errors:
        return
    _logger.error(report.describe(errors))
    summary = "; ".join(f"{error} (such as {error.cases[0]})" for error in errors)
    advice = "correct the annotations; the log lists the first cases"
    if all(error.check.skipped for error in errors):
        advice = "correct them, or leave them out with MODEL.FOCAL_RETINA.DATA_CHECK.MODE skip"
    raise ValueError(f"data set {report.name!r}: {summary}: {advice}")


def build_record_filter(cfg: CfgNode) -> Callable[[Records], Records]:
    """The function that removes unusable records of DATASETS.TRAIN where DATA_CHECK.MODE is "skip";
    it raises ValueError where nothing remains.

    The main process checks the sets, and the others take over what it found: each process of a
    training must call the function.
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
    """Remove images by their path, and objects with a faulty box; log how many.

    The records, in Detectron2's format, are not changed.
    """
    kept = [record for record in records if record["file_name"] not in unusable_images]
    dropped = Counter({"images that can't be used": len(records) - len(kept)})
    table = build_table("", kept, {})
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
