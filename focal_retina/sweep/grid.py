"""A sweep file: the rows of one table, what each changes, and the paper's numbers beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as the table prints it, such as "γ 2, α .25".
        overrides: config keys and their values, merged over the base config.
        paper: the paper's numbers in percent by metric ("AP", "AP50", …); empty where it has none.
        paper_note: what the paper says in words, such as "diverges".
        x: the row's place on the figure's x axis.
    """

    name: str
    overrides: dict[str, Any]
    paper: dict[str, float] = field(default_factory=dict)
    paper_note: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Figure:
    """AP over one quantity: the axis's label, and whether it is logarithmic."""

    x_label: str
    log: bool = False


@dataclass(frozen=True)
class Tuning:
    """What is chosen for every row before its test: the best of ``values`` by AP on ``datasets``.

    Attributes:
        key: a config key, such as SOLVER.BASE_LR.
        values: what is tried.
        datasets: DATASETS.TEST while tuning; None leaves the config's.
        seeds: how many seeds each value is tried with.
    """

    key: str
    values: list[Any]
    datasets: list[str] | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Sweep:
    """One table.

    Attributes:
        name: the file's name without its ending.
        title: headline of the report.
        setting: what the paper trained and evaluated on for its column.
        reference: name of the row that the others are compared with.
        rows: in the table's order.
        overrides: config keys and values of every row.
        figure: None for a table without one.
        tuning: None for a sweep that tunes nothing.
    """

    name: str
    title: str
    setting: str
    reference: str
    rows: list[Row]
    overrides: dict[str, Any] = field(default_factory=dict)
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
        sweep = _build_sweep(path.stem, content)
        _check(sweep)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a sweep file: {error}") from error
    return sweep


def _build_sweep(name: str, content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise ValueError("its top level is no mapping")
    fields = dict(content)
    rows = fields.pop("rows", None)
    if not isinstance(rows, list) or not rows:
        raise ValueError('it has no list "rows"')
    figure, tuning = fields.pop("figure", None), fields.pop("tuning", None)
    return Sweep(
        name=name,
        # A row's name may be read as a number, such as 512.
        rows=[Row(**{**row, "name": str(row.get("name", ""))}) for row in rows],
        figure=None if figure is None else Figure(**figure),
        tuning=None if tuning is None else Tuning(**tuning),
        **fields,
    )


def _check(sweep: Sweep) -> None:
    names = [row.name for row in sweep.rows]
    if "" in names or len(set(names)) < len(names):
        raise ValueError("every row needs a name of its own")
    if sweep.reference not in names:
        raise ValueError(f'"reference" is {sweep.reference!r}, which is no row')
    places: list[Sweep | Row] = [sweep, *sweep.rows]
    for place in places:
        if not isinstance(place.overrides, dict):
            raise ValueError(f'"overrides" of {place.name!r} is no mapping of config keys')
    for row in sweep.rows:
        if not isinstance(row.paper, dict):
            raise ValueError(f'"paper" of {row.name!r} is no mapping of metrics')
        if sweep.figure is not None and not isinstance(row.x, (int, float)):
            raise ValueError(f'the figure needs a number "x" in row {row.name!r}')
    if sweep.tuning is not None and (not sweep.tuning.values or sweep.tuning.seeds < 1):
        raise ValueError('"tuning" needs at least one of "values" and one of "seeds"')


def flatten_overrides(overrides: Mapping[str, Any]) -> list[Any]:
    """``[key, value, key, value, …]``, as ``CfgNode.merge_from_list`` takes it."""
    return [part for pair in overrides.items() for part in pair]
