"""What ends a training early: signals, and errors that its user can mend.

After Ctrl-C and SIGTERM it finishes the iteration, saves and leaves.

Schedulers send SIGTERM some seconds before they kill; a terminal sends SIGINT to every process of
a command. Either way all processes of a training have to stop after the same iteration, as each
waits for the others in the next.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from detectron2.utils import comm

from ..data import CorruptImageError
from .setup import UserError


class Interrupted(KeyboardInterrupt):
    """Training stopped after a saved iteration, as a signal asked. No error, so no traceback."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def exit_status_of(signum: int | None) -> int:
    """130 for Ctrl-C, as shells have it; 0 for SIGTERM, which asked for nothing but an end."""
    return 130 if signum == signal.SIGINT else 0


class StopRequest:
    """The first SIGTERM or Ctrl-C while :meth:`listen` lasts; a second Ctrl-C kills at once."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._pid = os.getpid()
        self._is_evaluating = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Take note of the signals instead of dying of them.

        A handler of Ctrl-C that is not Python's own stays. Outside the main thread, where Python
        allows no handlers, nothing is changed.
        """
        ctrl_c_is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signals = [signal.SIGTERM, *([signal.SIGINT] if ctrl_c_is_free else [])]
        with _handlers(signals, self._handle):
            yield

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a data worker that has not begun: its parent ends it
        if signum == signal.SIGINT:
            # The system's own reaction, which waits for no Python code
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_first, self._signum = self._signum is None, self._signum or signum
        if self._is_evaluating and comm.get_world_size() == 1:
            raise Interrupted(self._signum)
        if is_first and comm.is_main_process():
            what = "evaluation" if self._is_evaluating else "iteration, then saving"
            text = f"finishing this {what}; a second Ctrl-C leaves at once"
            print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Nothing has to be finished and saved: a signal counts at once. Of several processes each
        has to come to the end of its share, for which the others wait.

        Raises:
            Interrupted: a signal came, and this is the only process.
        """
        before, self._is_evaluating = self._is_evaluating, True
        try:
            if self._signum is not None and comm.get_world_size() == 1:
                raise Interrupted(self._signum)
            yield
        finally:
            self._is_evaluating = before

    def agreed(self) -> int | None:
        """The signal that any of the processes got, the same in all; every process must call."""
        return next((x for x in comm.all_gather(self._signum) if x is not None), None)


@contextlib.contextmanager
def forward_to_children() -> Iterator[list[int]]:
    """Tell the processes that this one starts to stop.

    They get SIGTERM, whatever came, and are waited for; a second Ctrl-C kills them and leaves.

    Yields:
        An empty list, into which the first signal is put.
    """
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        children = multiprocessing.active_children()
        if not received:
            received.append(signum)
            for child in children:
                child.terminate()
        elif signum == signal.SIGINT:
            for child in children:
                child.kill()
            os._exit(exit_status_of(signum))

    with _handlers([signal.SIGTERM, signal.SIGINT], handle):
        yield received


def leave_ctrl_c_to_parent() -> None:
    """In a process under :func:`forward_to_children`: SIGINT counts once the parent is dead."""
    parent = os.getppid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


@contextlib.contextmanager
def _handlers(
    signals: Iterable[int], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


# Errors in the midst of a training that its user can mend: their text, and what to do
_ADVICE = (
    (
        "No space left on device|Disk quota exceeded",
        "the disk is full: make room, and go on with --resume",
    ),
    (
        "[Oo]ut of memory|can't allocate memory|Unable to allocate",
        "there is not enough memory: set SOLVER.IMS_PER_BATCH, the sizes below INPUT or "
        "DATALOADER.NUM_WORKERS lower",
    ),
    (
        r"DataLoader worker \(.*(killed by signal|exited unexpectedly)",
        "a data worker was killed, as the system does where memory runs out: set "
        "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH lower, and go on with --resume",
    ),
    (
        "Expected more than 1 value per channel",
        "batch normalization cannot take the variance of one value per channel: set "
        "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN higher, or MODEL.RESNETS.NORM and "
        "MODEL.FPN.NORM to FrozenBN or GN",
    ),
    (r"left out \d+ images in a row|: object \d+ has ", ""),
)


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
    # Of a data worker's error the last line is the message, the others are a traceback.
    last_line = str(error).strip().rpartition("\n")[2]
    if isinstance(error, (FloatingPointError, CorruptImageError)):
        return last_line
    for pattern, advice in _ADVICE:
        if re.search(pattern, str(error)):
            return f"{advice} ({last_line})" if advice else last_line
    return None


@contextlib.contextmanager
def without_known_tracebacks() -> Iterator[None]:
    """Detectron2's training loop logs the traceback of any error."""

    def is_needed(record: logging.LogRecord) -> bool:
        return record.exc_info is None or not _explanation(record.exc_info[1])

    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(is_needed)
    try:
        yield
    finally:
        loop_logger.removeFilter(is_needed)
