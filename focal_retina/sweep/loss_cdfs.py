"""Where the loss of the trained models is: what tools/analyze_loss.py left in trials' folders."""

from collections.abc import Sequence
from pathlib import Path

from ..analysis.loss_report import NUMBERS_FILE, MeasuredCdfs, read_loss_cdfs
from .results import TrialResult
from .statistics import RowSummary


def loss_folder(trial_directory: Path) -> Path:
    return trial_directory / "loss_distribution"


def trials_to_measure(summaries: Sequence[RowSummary]) -> list[TrialResult]:
    """Of each row that has any the finished trial of the lowest seed: its loss stands for the
    row's."""
    done = [summary.done for summary in summaries if summary.done]
    return [min(trials, key=lambda trial: trial.seed) for trials in done]


def read_trial_losses(trial_directory: Path) -> MeasuredCdfs | None:
    """None where nothing was measured, or where measuring was cut off."""
    try:
        return read_loss_cdfs(loss_folder(trial_directory) / NUMBERS_FILE)
    except (OSError, ValueError):
        return None


def read_row_losses(summaries: Sequence[RowSummary], directory: Path) -> dict[str, MeasuredCdfs]:
    """Name of a row -> its model's curves; without the rows that were not measured.

    Args:
        summaries: the sweep's rows.
        directory: what the trials' directories are relative to.
    """
    measured = {
        trial.row: read_trial_losses(directory / trial.directory)
        for trial in trials_to_measure(summaries)
    }
    return {row: cdfs for row, cdfs in measured.items() if cdfs is not None}
