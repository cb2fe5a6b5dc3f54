"""Checking data sets: what was found, and whether a training may start."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .check import CHECKS, Case, Check
from .images import inspect_images
from .table import AnnotationTable, NotRecordsError, is_generated, load_table

_logger = logging.getLogger(__name__)

MODES = ("error", "skip", "off")
_MAX_CASES = 10  # cases of a finding that are listed; all are counted
_TOLERATED_SHARE = 0.01  # of the objects


@dataclass(frozen=True, eq=False)
class Finding:
    """All that one check found in a data set."""

    check: Check
    degree: str  # ``error``, ``warning`` or ``note``
    indices: Sequence[int] | np.ndarray
    """Of the faulty entries, in the columns that the check reads."""
    cases: tuple[Case, ...]  # the first of them

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
    findings: tuple[Finding, ...]

    @property
    def num_objects(self) -> int:
        return int(self.table.class_counts.sum())

    @property
    def unusable_images(self) -> set[str]:
        """Paths of the images that ``skip`` removes."""
        files = self.table.file_names
        found = (x.indices for x in self.findings if x.check.skipped == "image")
        return {files[index] for indices in found for index in indices}

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

    def __str__(self) -> str:
        table = self.table
        empty = len(table.empty_images)
        lines = [
            f"{self.name}: {len(table.image_ids):,} images, {self.num_objects:,} objects of "
            f"{len(table.class_names)} classes, {empty:,} images without objects "
            f"({empty / max(1, len(table.image_ids)):.1%}), {table.is_crowd.sum():,} crowds; "
            f"{table.files.num_decoded:,} images decoded"
        ]
        for degree in ("error", "warning", "note"):
            if findings := self.of_degree(degree):
                lines.append(f"{degree}: {self.describe(findings)}")
        return "\n".join(lines)


def check_dataset(name: str, *, training: bool = True, num_decoded: int) -> DatasetReport:
    """Check a registered data set.

    Args:
        name: the data set.
        training: whether it is trained on, or only evaluated.
        num_decoded: how many images to decode; below 0: all. That every file is there is always
            checked.

    Raises:
        ValueError: the annotation file is not COCO json; the message says where.
        FileNotFoundError: there is none.
    """
    table = load_table(name)
    table = replace(table, files=inspect_images(table.file_names, num_decoded))
    findings = []
    for check in CHECKS.values():
        indices, describe = check.find(table)
        if len(indices):
            cases = dict.fromkeys(describe(int(index)) for index in indices[:_MAX_CASES])
            degree = _degree(check, len(indices), table, training)
            findings.append(Finding(check, degree, indices, tuple(cases)))
    return DatasetReport(name, training, table, tuple(findings))


def _degree(check: Check, count: int, table: AnnotationTable, training: bool) -> str:
    if check.degree == "tolerated":
        return "error" if count > _TOLERATED_SHARE * table.class_counts.sum() else "warning"
    return "warning" if check.training_only and not training else check.degree


def check_datasets(
    train: Iterable[str], test: Iterable[str], *, mode: str, num_decoded: int
) -> list[DatasetReport]:
    """Check the data sets of a config; log the warnings, and stop at errors.

    Sets that this package generates are not checked, nor are those that are not lists of records.

    Args:
        train: names of the sets to train on.
        test: names of the sets that are only evaluated.
        mode: ``error`` stops at every error; ``skip`` only at those that remain when
            :mod:`~focal_retina.dataset_check.skip` has removed images and objects; ``off`` checks
            nothing.
        num_decoded: see :func:`check_dataset`.

    Returns:
        The reports of the sets that were checked.

    Raises:
        ValueError: there are errors; the message gives counts and the first case of each check,
            and the log the first cases.
    """
    if mode not in MODES:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.DATA_CHECK.MODE is {mode!r}; use one of {', '.join(MODES)}"
        )
    if mode == "off":
        return []
    train = list(train)
    reports = []
    for name in dict.fromkeys([*train, *test]):
        if is_generated(name):
            continue
        try:
            report = check_dataset(name, training=name in train, num_decoded=num_decoded)
        except NotRecordsError as error:
            _logger.warning("%s: it is not checked", error)
            continue
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
