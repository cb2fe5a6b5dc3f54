"""The trials of a sweep: which config each trains, where, and under which hash."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .grid import Row, Sweep

# Tuning draws other seeds than the test does, so that the test is of fresh ones.
_FIRST_TUNING_SEED = 1001
_CHECKPOINTS_PER_TRIAL = 5


@dataclass(frozen=True)
class CodeInputs:
    """What a trial's result depends on beside its config: train_net's ``--register`` and
    ``--import``, each as the command line has it."""

    register: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        pairs = [("--register", x) for x in self.register] + [("--import", x) for x in self.imports]
        return [part for pair in pairs for part in pair]

    def fingerprint(self) -> list[str]:
        """The specs, and the contents of the imported files."""
        contents = [hashlib.sha256(Path(x).read_bytes()).hexdigest() for x in self.imports]
        return [*self.register, *contents]


@dataclass(frozen=True)
class Trial:
    """One training to run. ``directory`` is relative to the sweep's; see
    :class:`~focal_retina.sweep.results.TrialResult` for the other names."""

    row: str
    seed: int
    stage: str
    tuned: Any
    config_yaml: str
    config_hash: str
    directory: str
    max_iter: int
    test_dataset: str

    @property
    def label(self) -> str:
        tuned = "" if self.stage == "test" else f" {self.tuned}"
        return f"{self.row}{tuned} #{self.seed}"


def config_hash(cfg: CfgNode, inputs: CodeInputs) -> str:
    """sha256 of everything that decides a trial's numbers: the whole config but for the folder that
    it writes to, and ``inputs``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    content = json.dumps([cfg.dump(), inputs.fingerprint()])
    return hashlib.sha256(content.encode()).hexdigest()


def plan_tuning(sweep: Sweep, base: CfgNode, inputs: CodeInputs) -> list[Trial]:
    """Trials of every row with every value of ``sweep.tuning``; none where nothing is tuned."""
    tuning = sweep.tuning
    if tuning is None:
        return []
    datasets = {} if tuning.datasets is None else {"DATASETS.TEST": tuple(tuning.datasets)}
    return [
        _plan_trial(sweep, row, base, inputs, "tune", value, seed, datasets)
        for seed in range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + tuning.seeds)
        for row in sweep.rows
        for value in tuning.values
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
        ValueError, KeyError: a row's override is not a key of the config, or of another type; the
            message names the row.
    """
    chosen = chosen or {}
    return [
        _plan_trial(sweep, row, base, inputs, "test", chosen.get(row.name), seed, {})
        for seed in seeds
        for row in sweep.rows
    ]


def _plan_trial(
    sweep: Sweep,
    row: Row,
    base: CfgNode,
    inputs: CodeInputs,
    stage: str,
    tuned: Any,
    seed: int,
    overrides: Mapping[str, Any],
) -> Trial:
    cfg = base.clone()
    cfg.defrost()
    tuned_key = {} if tuned is None or sweep.tuning is None else {sweep.tuning.key: tuned}
    # A trial's AP is its result, whatever the base config expects.
    fixed = {"SEED": seed, "TEST.EXPECTED_RESULTS": []}
    for key, value in {**row.overrides, **tuned_key, **overrides, **fixed}.items():
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(
                f"row {row.name!r} of {sweep.name}: {key} {value!r}: {error}"
            ) from error
    period = max(1, cfg.SOLVER.MAX_ITER // _CHECKPOINTS_PER_TRIAL)
    cfg.SOLVER.CHECKPOINT_PERIOD = min(cfg.SOLVER.CHECKPOINT_PERIOD, period)

    digest = config_hash(cfg, inputs)
    parts = [row.name, stage, *([str(tuned)] if stage == "tune" else []), f"seed{seed}"]
    directory = f"trials/{'-'.join(map(_slug, parts))}-{digest[:8]}"
    return Trial(
        row=row.name,
        seed=seed,
        stage=stage,
        tuned=tuned,
        config_yaml=cfg.dump(),
        config_hash=digest,
        directory=directory,
        max_iter=cfg.SOLVER.MAX_ITER,
        test_dataset=cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "",
    )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+]+", "_", text).strip("_")
