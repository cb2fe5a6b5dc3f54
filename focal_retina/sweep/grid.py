"""A sweep file: the rows of one table, what each changes, and the paper's numbers beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str  # as the table prints it, such as "γ 2, α .25"
    overrides: dict[str, Any]  # config keys and their values, merged over the base config
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
    datasets: list[str] | None = None  # DATASETS.TEST while tuning; None leaves the config's
    seeds: int = 1  # how many seeds each value is tried with


@dataclass(frozen=True)
class Sweep:
    """One table."""

    name: str  # of the file, without its ending
    title: str  # headline of the report
    setting: str  # what the paper trained and evaluated on for its column
    reference: str  # name of the row that the others are compared with
    rows: list[Row]
    overrides: dict[str, Any] = field(default_factory=dict)  # of every row
    figure: Figure | None = None
    tuning: Tuning | None = None


def read_sweep(path: Path | str) -> Sweep:
    """Read a sweep file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a sweep file; the message names the file and what is wrong in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no sweep file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not yaml: {error}") from error
    try:
        return _build_sweep(path.stem, content)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a sweep file: {error}") from error


def flatten_overrides(overrides: Mapping[str, Any]) -> list[Any]:
    """``[key, value, key, value, …]``, as ``CfgNode.merge_from_list`` takes it."""
    return [part for pair in overrides.items() for part in pair]


def _build_sweep(name: str, content: Any) -> Sweep:
    _require(isinstance(content, dict), "its top level is not a mapping")
    rows, figure, tuning = (content.get(key) for key in ("rows", "figure", "tuning"))
    _require(isinstance(rows, list) and bool(rows), 'it has no list "rows"')
    # A row's name may be read as a number, such as 512.
    content["rows"] = [Row(**{**row, "name": str(row.get("name", ""))}) for row in rows]
    content["figure"] = None if figure is None else Figure(**figure)
    content["tuning"] = None if tuning is None else Tuning(**tuning)
    sweep = Sweep(name=name, **content)
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    names = [row.name for row in sweep.rows]
    _require("" not in names, "a row has no name")
    _require(len(set(names)) == len(names), "two rows have the same name")
    _require(sweep.reference in names, f'"reference" is {sweep.reference!r}, which is not a row')
    _require(isinstance(sweep.overrides, dict), '"overrides" is not a mapping of config keys')
    for row in sweep.rows:
        for key, value in (("overrides", row.overrides), ("paper", row.paper)):
            _require(isinstance(value, dict), f'"{key}" of {row.name!r} is not a mapping')
        if sweep.figure is not None and not isinstance(row.x, (int, float)):
            raise ValueError(f'the figure needs a number "x" in row {row.name!r}')
    if sweep.tuning is not None:
        _require(bool(sweep.tuning.values), '"tuning" has no "values"')
        _require(sweep.tuning.seeds >= 1, '"seeds" of "tuning" is not positive')


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
