"""Is a data set what its annotation file says, and can a detector learn from it?"""

from . import checks
from .anchor_coverage import warn_of_unreached_objects
from .check import CHECKS
from .report import DatasetReport, check_dataset, check_datasets
from .skip import build_record_filter

__all__ = [
    "CHECKS",
    "DatasetReport",
    "build_record_filter",
    "check_dataset",
    "check_datasets",
    "checks",
    "warn_of_unreached_objects",
]
