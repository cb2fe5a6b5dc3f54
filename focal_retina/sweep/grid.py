"""A sweep file, which describes one table, and the trials that its rows and seeds make."""

import difflib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config_file import config_hash, merge_options, with_values
from ..files import annotation_file

# Tuning draws other seeds than the test does, so that the test is of fresh ones.
_FIRST_TUNING_SEED = 1001
_CHECKPOINTS_PER_TRIAL = 5
_NAMES = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str  # as the table prints it, such as "γ 2, α .25"
    overrides: dict[str, Any] = field(default_factory=dict)  # config keys and this row's values
    paper: dict[str, float] = field(default_factory=dict)  # in percent: "AP", "AP50", …
    paper_note: str = ""  # what the paper says in words, such as "diverges"
    x: float | None = None  # the row's place on the figure's x axis


@dataclass(frozen=True)
class Figure:
    """AP over the quantity that the rows differ in."""

    x_label: str


@dataclass(frozen=True)
class Tuning:
    """What is chosen for every row before its test: the value of the highest AP."""

    key: str  # of the config, such as SOLVER.BASE_LR
    values: list[Any]
    seeds: int = 1  # how many seeds each value is tried with


@dataclass(frozen=True)
class Sweep:
    """One table: the keys of its file, which docs/redo_the_paper.md describes."""

    name: str  # of the file, without its ending
    title: str  # headline of the report
    setting: str  # what the paper trained and evaluated on for its column
    reference: str  # name of the row that the others are compared with
    rows: list[Row]
    overrides: dict[str, Any] = field(default_factory=dict)  # of every row
    figure: Figure | None = None
    tuning: Tuning | None = None


def read_sweep(path: Path | str) -> Sweep:
    """Read a sweep file. A FileNotFoundError or ValueError names it, and what is wrong in it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no sweep file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        sweep = _build(Sweep, content, "", name=path.stem)
        _check(sweep)
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is not a sweep file: {problem}") from error
    return sweep


def _build(cls: Any, content: Any, where: str, **given: Any) -> Any:
    """A dataclass from a mapping; ``where`` says of what in the file, such as "rows[2]."."""
    known = {x.name: x for x in fields(cls) if x.name not in given}
    place = where.rstrip(".") or "its top level"
    _require(isinstance(content, dict), f"{place} is not a mapping of {', '.join(known)}")
    for key, value in content.items():
        near = "".join(difflib.get_close_matches(str(key), known, n=1))
        hint = f"is it {near!r}?" if near else f"the keys are {', '.join(known)}"
        _require(key in known, f"{where}{key}: there is no such key; {hint}")
        given[key] = _convert(known[key].type, value, f"{where}{key}")
    for key, x in known.items():
        is_optional = x.default is not MISSING or x.default_factory is not MISSING
        _require(is_optional or key in content, f"{place} has no key {key!r}")
    return cls(**given)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """The value as the type of its field."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:  # of a type and None
        return None if value is None else _convert(arguments[0], value, where)
    if is_dataclass(kind):
        return _build(kind, value, f"{where}.")
    if kind is str and isinstance(value, (int, float)):  # a name such as 512
        return str(value)
    expected: Any = {Any: object, float: (int, float)}.get(kind, origin)
    _require(isinstance(value, expected), f"{where} is {value!r}, not {_NAMES.get(origin)}")
    if origin is list:
        return [_convert(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(value, start=1)]
    if origin is dict:
        return {str(k): _convert(arguments[1], x, f"{where}.{k}") for k, x in value.items()}
    return value


def _check(sweep: Sweep) -> None:
    names = [row.name for row in sweep.rows]
    _require(names and all(names), "'rows' is empty, or a row has no name")
    _require(len(set(names)) == len(names), "two rows have the same name")
    _require(sweep.reference in names, f"'reference' is {sweep.reference!r}, which is not a row")
    for row in sweep.rows if sweep.figure else ():
        _require(row.x is not None, f"the figure needs a number 'x' in row {row.name!r}")
    if sweep.tuning is not None:
        _require(sweep.tuning.values, "tuning.values is empty")
        _require(sweep.tuning.seeds >= 1, f"tuning.seeds is {sweep.tuning.seeds}, below 1")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def select_rows(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """The sweep of these rows and the reference. A ValueError says what rows there are."""
    known = [row.name for row in sweep.rows]
    unknown = [name for name in names if name not in known]
    _require(not unknown, f"{sweep.name} has no row {unknown}; its rows are {'; '.join(known)}")
    return replace(sweep, rows=[x for x in sweep.rows if x.name in {*names, sweep.reference}])


@dataclass(frozen=True)
class CodeInputs:
    """What a trial's result depends on beside its config, each as the command line has it."""

    register: tuple[str, ...] = ()  # --register
    imports: tuple[str, ...] = ()  # --import
    scripts: tuple[Path, ...] = ()  # --train-script

    def arguments(self) -> list[str]:
        return [f"--register={x}" for x in self.register] + [f"--import={x}" for x in self.imports]

    def fingerprint(self, cfg: CfgNode) -> list[str]:
        """--register, and the contents of the imported files, of the training script, of the data
        sets' annotations and of MODEL.WEIGHTS."""
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        annotations = map(annotation_file, datasets)
        files = *self.imports, *self.scripts, *annotations, cfg.MODEL.WEIGHTS
        paths = map(Path, files)
        return [*self.register, *(_sha256(x, x.stat().st_mtime_ns) for x in paths if x.is_file())]


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    """Of a file's contents, which are read once as long as they do not change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Trial:
    """One training to run."""

    row: str  # its name
    seed: int  # SEED
    stage: str  # "tune" or "test"; only the latter is the table's
    tuned: Any  # the tuned key's value, None where nothing is tuned
    cfg: CfgNode
    config_hash: str  # of all that decides the numbers
    directory: str  # relative to the folder of all sweeps


def plan_tuning(
    sweep: Sweep, base: CfgNode, inputs: CodeInputs, datasets: Sequence[str]
) -> list[Trial]:
    """Trials of every row with every value of ``sweep.tuning``, none where nothing is tuned.
    ``datasets``, a single one, are DATASETS.TEST meanwhile. A ValueError says that it is one of the
    test's, is missing or is not registered."""
    tuning = sweep.tuning
    if tuning is None:
        _require(not datasets, f"--tune-on: {sweep.name} has no key 'tuning'")
        return []
    _require(len(datasets) < 2, f"--tune-on {datasets}: give one data set, whose AP chooses")
    is_other = datasets and datasets[0] not in base.DATASETS.TEST
    hint = "give --tune-on a data set other than DATASETS.TEST"
    _require(is_other, f"{sweep.name} tunes {tuning.key}: {hint}")
    is_known = datasets[0] in DatasetCatalog
    _require(is_known, f"--tune-on {datasets}: it is not registered; see --register")
    base = with_values(base, {"DATASETS.TEST": tuple(datasets)})
    seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + tuning.seeds)
    every = itertools.product(seeds, sweep.rows, tuning.values)
    return [_plan_trial(sweep, r, base, inputs, "tune", value, s) for s, r, value in every]


def plan_tests(
    sweep: Sweep, base: CfgNode, inputs: CodeInputs, seeds: Sequence[int], chosen: Mapping[str, Any]
) -> list[Trial]:
    """Trials of every row with every seed, the first seed of all rows first. ``chosen`` holds the
    tuned values by the rows' names. A ValueError names an override that does not fit ``base``."""
    every = itertools.product(seeds, sweep.rows)
    return [_plan_trial(sweep, r, base, inputs, "test", chosen.get(r.name), s) for s, r in every]


def _plan_trial(
    sweep: Sweep, row: Row, base: CfgNode, inputs: CodeInputs, stage: str, tuned: Any, seed: int
) -> Trial:
    overrides = dict(row.overrides)
    if sweep.tuning is not None and tuned is not None:
        overrides[sweep.tuning.key] = tuned
    # A trial's AP is its result, whatever the base config expects.
    overrides |= {"SEED": seed, "TEST.EXPECTED_RESULTS": []}
    cfg = base.clone()
    cfg.defrost()
    try:
        merge_options(cfg, list(itertools.chain(*overrides.items())))
        if cfg.TEST.PATIENCE:
            raise ValueError("TEST.PATIENCE is not for rows, which are compared at SOLVER.MAX_ITER")
    except ValueError as error:
        raise ValueError(f"row {row.name!r} of {sweep.name}: {error}") from error
    period = max(1, cfg.SOLVER.MAX_ITER // _CHECKPOINTS_PER_TRIAL)
    cfg.SOLVER.CHECKPOINT_PERIOD = min(cfg.SOLVER.CHECKPOINT_PERIOD, period)

    digest = config_hash(cfg, inputs.fingerprint(cfg))
    parts = [row.name, f"tune-{tuned}" if stage == "tune" else "test", f"seed{seed}", digest[:8]]
    names = [re.sub(r"[^\w.+-]+", "_", part).strip("_") for part in parts]
    return Trial(row.name, seed, stage, tuned, cfg, digest, f"trials/{'-'.join(names)}")
