from .cluster import connect, default_gpus
from .grid import flatten_overrides, read_sweep
from .plan import CodeInputs
from .results import TrialResult
from .runner import TrialRunner
from .sweep import git_commit, run_sweep

__all__ = [
    "CodeInputs",
    "TrialResult",
    "TrialRunner",
    "connect",
    "default_gpus",
    "flatten_overrides",
    "git_commit",
    "read_sweep",
    "run_sweep",
]
