"""Checking data sets before a training."""

import functools
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from .annotations import check_annotations, class_counts
from .cache import cached, file_digest
from .images import check_images, file_states
from .kinds import KINDS
from .report import DatasetReport, Finding
from .table import AnnotationTable, NotRecordsError, coco_source, is_generated, load_table

_logger = logging.getLogger(__name__)

MODES = ("error", "skip", "off")
_VERSION = 1  # to be raised with every change of what is found, so that old reports are not used


def check_dataset(name: str, *, num_decoded: int | None) -> DatasetReport:
    """Check a registered data set.

    The report of an earlier check is taken if neither the annotation file, by its hash, nor the
    image files, by their sizes and times, have changed since. Sets that are no COCO files have no
    hash, and are checked anew.

    Args:
        name: the data set.
        num_decoded: how many images to decode; None: all. Whether the files are there is always
            checked for all.

    Raises:
        ValueError: the annotation file is not COCO json; the message says where.
        FileNotFoundError: there is none.
    """
    table = functools.cache(lambda: load_table(name))
    source = coco_source(name)
    if source is None or is_generated(name):
        return _check(name, table(), num_decoded)
    json_file, image_root = source
    file = [_VERSION, json_file, file_digest(PathManager.get_local_path(json_file)), image_root]
    # The names are cached too, since reading a large json takes longer than all the rest.
    file_names = cached(
        [*file, "file names"], lambda: table().file_names, encode=list, decode=_list_of_strings
    )
    states = file_states(file_names)
    return cached(
        [*file, name, num_decoded, hashlib.sha256(repr(states).encode()).hexdigest()],
        lambda: _check(name, table(), num_decoded),
        encode=DatasetReport.to_json,
        decode=DatasetReport.from_json,
    )


def _list_of_strings(content: Any) -> list[str]:
    if not isinstance(content, list) or not all(isinstance(x, str) for x in content):
        raise TypeError("not a list of strings")
    return content


def _check(name: str, table: AnnotationTable, num_decoded: int | None) -> DatasetReport:
    states = file_states(table.file_names)
    image_findings, unusable, decoded = check_images(table, states, num_decoded)
    findings = [*check_annotations(table), *image_findings]
    order = list(KINDS)
    counts = class_counts(table).tolist()
    return DatasetReport(
        name=name,
        source=table.source,
        num_images=len(table.image_ids),
        num_empty=next((f.count for f in findings if f.kind == "empty_images"), 0),
        num_crowds=int(table.is_crowd.sum()),
        class_names=tuple(table.class_names),
        class_counts=tuple(counts),
        num_decoded=decoded,
        findings=tuple(sorted(findings, key=lambda f: order.index(f.kind))),
        unusable_images=tuple(unusable),
    )


def check_datasets(
    train: Iterable[str], test: Iterable[str], *, mode: str, num_decoded: int | None
) -> None:
    """Check the data sets of a config; log the warnings, and stop at errors.

    Sets that this package generates are not checked, nor are those that are no lists of records.

    Args:
        train: names of the sets to train on.
        test: names of the sets that are only evaluated.
        mode: ``error`` stops at every error; ``skip`` only at those that leaving out images or
            objects does not mend, which :func:`~focal_retina.data.checks.leave_out_unusable` does;
            ``off`` checks nothing.
        num_decoded: see :func:`check_dataset`.

    Raises:
        ValueError: there are errors; the message gives counts and the first case of each kind,
            and the log the first cases.
    """
    if mode not in MODES:
        raise ValueError(
            f"MODEL.FOCAL_RETINA.DATA_CHECK.MODE is {mode!r}; use one of {', '.join(MODES)}"
        )
    if mode == "off":
        return
    train = list(train)
    for name in dict.fromkeys([*train, *test]):
        if is_generated(name):
            continue
        try:
            report = check_dataset(name, num_decoded=num_decoded)
        except NotRecordsError as error:
            _logger.warning("%s: it is not checked", error)
        else:
            _judge(report, mode, training=name in train)


def _judge(report: DatasetReport, mode: str, *, training: bool) -> None:
    errors = report.of_degree("error", training=training)
    warnings = report.of_degree("warning", training=training)
    if mode == "skip":
        warnings += [f for f in errors if KINDS[f.kind].leaves_out]
        errors = [f for f in errors if not KINDS[f.kind].leaves_out]
    if warnings:
        _logger.warning(report.describe(warnings))
    if errors:
        _logger.error(report.describe(errors))
        raise ValueError(f"data set {report.name!r}: {_summary(errors)}: {_advice(errors)}")


def _summary(errors: Sequence[Finding]) -> str:
    return "; ".join(f"{error} (such as {error.cases[0]})" for error in errors)


def _advice(errors: Sequence[Finding]) -> str:
    if all(KINDS[error.kind].leaves_out for error in errors):
        return "correct them, or leave them out with MODEL.FOCAL_RETINA.DATA_CHECK.MODE skip"
    return "correct the annotations; tools/check_dataset.py --html lists the cases"
