"""Figures, looked at before they become pixels."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def saved(monkeypatch):
    """The figures that were written."""
    figures = []
    savefig = Figure.savefig

    def record(figure, *arguments, **keywords):
        figures.append(figure)
        savefig(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures
