"""Is a data set what its annotation file says, and can a detector learn from it?"""

from . import duplicates  # registers its checks
from .checks import CHECKS
from .report import build_record_filter, check_dataset, check_datasets, warn_of_unreached_objects
