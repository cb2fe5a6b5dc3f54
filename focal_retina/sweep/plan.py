"""The trials of a sweep: which config each trains, where, and under which hash."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config_file import config_hash
from .grid import Row, Sweep

# Tuning draws other seeds than the test does, so that the test is of fresh ones.
_FIRST_TUNING_SEED = 1001
_CHECKPOINTS_PER_TRIAL = 5


@dataclass(frozen=True)
class CodeInputs:
    """What a trial's result depends on beside its config, each as the command line has it."""

    register: tuple[str, ...] = ()  # --register
    imports: tuple[str, ...] = ()  # --import

    def arguments(self) -> list[str]:
        pairs = [("--register", x) for x in self.register] + [("--import", x) for x in self.imports]
        return [part for pair in pairs for part in pair]

    def fingerprint(self) -> list[str]:
        """The data sets, and the contents of the imported files."""
        contents = [hashlib.sha256(Path(x).read_bytes()).hexdigest() for x in self.imports]
        return [*self.register, *contents]


@dataclass(frozen=True)
class Trial:
    """One training to run; see :class:`~focal_retina.sweep.results.TrialResult`."""

    row: str
    seed: int
    stage: str
    tuned: Any
    cfg: CfgNode
    config_hash: str
    directory: str

    @property
    def max_iter(self) -> int:
        return self.cfg.SOLVER.MAX_ITER

    @property
    def label(self) -> str:
        return f"{self.row}{f' {self.tuned}' if self.stage == 'tune' else ''} #{self.seed}"


def plan_tuning(sweep: Sweep, base: CfgNode, inputs: CodeInputs) -> list[Trial]:
    """Trials of every row with every value of ``sweep.tuning``; none where nothing is tuned."""
    if sweep.tuning is None:
        return []
    seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + sweep.tuning.seeds)
    return [
        _plan_trial(sweep, row, base, inputs, "tune", value, seed)
        for seed in seeds
        for row in sweep.rows
        for value in sweep.tuning.values
    ]


def plan_tests(
    sweep: Sweep,
    base: CfgNode,
    inputs: CodeInputs,
    seeds: Sequence[int],
    chosen: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """Trials of every row with every seed, the first seed of all rows first.

    Args:
        base: the frozen config that the rows' overrides are merged into.
        chosen: row's name to its tuned value, where the sweep tunes one.

    Raises:
        ValueError: an override is not a key of the config, or of another type.
    """
    tuned = chosen or {}
    return [
        _plan_trial(sweep, row, base, inputs, "test", tuned.get(row.name), seed)
        for seed in seeds
        for row in sweep.rows
    ]


def _plan_trial(
    sweep: Sweep, row: Row, base: CfgNode, inputs: CodeInputs, stage: str, tuned: Any, seed: int
) -> Trial:
    overrides = dict(row.overrides)
    if sweep.tuning is not None and tuned is not None:
        overrides[sweep.tuning.key] = tuned
        if stage == "tune" and sweep.tuning.datasets is not None:
            overrides["DATASETS.TEST"] = tuple(sweep.tuning.datasets)
    # A trial's AP is its result, whatever the base config expects.
    overrides |= {"SEED": seed, "TEST.EXPECTED_RESULTS": []}
    cfg = base.clone()
    cfg.defrost()
    for key, value in overrides.items():
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            where = f"row {row.name!r} of {sweep.name}"
            raise ValueError(f"{where}: {key} {value!r}: {error}") from error
    period = max(1, cfg.SOLVER.MAX_ITER // _CHECKPOINTS_PER_TRIAL)
    cfg.SOLVER.CHECKPOINT_PERIOD = min(cfg.SOLVER.CHECKPOINT_PERIOD, period)

    digest = config_hash(cfg, inputs.fingerprint())
    parts = [row.name, stage, *([str(tuned)] if stage == "tune" else []), f"seed{seed}"]
    names = [re.sub(r"[^\w.+]+", "_", part).strip("_") for part in parts]
    directory = f"trials/{'-'.join(names)}-{digest[:8]}"
    return Trial(row.name, seed, stage, tuned, cfg, digest, directory)
