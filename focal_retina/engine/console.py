"""What a training prints: some twenty lines. ``log.txt`` has everything.

The console shows what this package says, Detectron2's tables of AP, and the progress in one line.
"""

import logging
import re
import shutil
import sys
import time
from pathlib import Path

_LOGGERS = ("detectron2", "fvcore", "focal_retina")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_PROGRESS = ("detectron2.utils.events", "detectron2.evaluation.evaluator")
_PERIOD = 60  # seconds between two lines of progress where the console is no terminal


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOR.sub("", super().format(record))


class _ConsoleHandler(logging.StreamHandler):
    """Standard output; on a terminal each line of progress takes the place of the one before."""

    def __init__(self, *, verbose: bool):
        super().__init__(sys.stdout)
        self.verbose = verbose
        self._last_progress = -float(_PERIOD)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        is_terminal = self.stream.isatty() and not self.verbose
        if record.name in _PROGRESS and record.levelno == logging.INFO and not self.verbose:
            if is_terminal:
                columns = shutil.get_terminal_size().columns
                self.stream.write(f"\r\x1b[K{' '.join(self.format(record).split())[: columns - 1]}")
                self.flush()
            elif time.monotonic() - self._last_progress >= _PERIOD:
                self._last_progress = time.monotonic()
                super().emit(record)
        elif self.verbose or _is_for_console(record):
            self.stream.write("\r\x1b[K" if is_terminal else "")
            super().emit(record)


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.name.startswith("focal_retina"):
        return record.levelno >= logging.INFO
    is_table = record.msg.startswith("Evaluation results for bbox") if record.msg else False
    return is_table or record.levelno >= logging.ERROR


def set_up_logging(output_dir: str | None = None, *, rank: int = 0, verbose: bool = False) -> None:
    """Send the log to the console (of rank 0) and to ``log.txt``; again replaces what it did.

    Args:
        output_dir: where ``log.txt`` is; it exists. None: no file.
        rank: of the process; another than 0 writes ``log.txt.rank1`` and so on.
        verbose: the console shows everything.
    """
    handlers: list[logging.Handler] = []
    if rank == 0:
        console = _ConsoleHandler(verbose=verbose)
        console.setFormatter(_PlainFormatter("%(message)s"))
        handlers.append(console)
    if output_dir:
        name = f"log.txt.rank{rank}" if rank else "log.txt"
        file = logging.FileHandler(Path(output_dir, name), encoding="utf-8")
        layout = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        file.setFormatter(_PlainFormatter(layout, "%Y-%m-%d %H:%M:%S"))
        handlers.append(file)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
