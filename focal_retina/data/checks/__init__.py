"""Is a data set what its annotation file says, and can a detector learn from it?

:mod:`~focal_retina.data.checks.kinds` is the table of all that can be found.
"""

from .boxes import box_faults
from .cache import cached, file_digest
from .kinds import KINDS
from .leave_out import filter_dataset_dicts, leave_out_unusable
from .report import Case, DatasetReport, Finding
from .run import MODES, check_dataset, check_datasets
from .table import AnnotationTable, NotRecordsError, coco_source, is_generated, load_table

__all__ = [
    "KINDS",
    "MODES",
    "AnnotationTable",
    "Case",
    "DatasetReport",
    "Finding",
    "NotRecordsError",
    "box_faults",
    "cached",
    "check_dataset",
    "check_datasets",
    "coco_source",
    "file_digest",
    "filter_dataset_dicts",
    "is_generated",
    "leave_out_unusable",
    "load_table",
]
