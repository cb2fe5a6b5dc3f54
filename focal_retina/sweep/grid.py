"""A sweep file: the rows of one table, what each changes, and the paper's numbers beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Figure", "Row", "Sweep", "Tuning", "read_sweep"]


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
