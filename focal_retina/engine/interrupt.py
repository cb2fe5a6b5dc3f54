"""Ctrl-C and SIGTERM: finish the iteration, save, leave.

Schedulers send SIGTERM some seconds before they kill; a terminal sends SIGINT to every process of
a command. Either way all processes of a training have to stop after the same iteration, as each
waits for the others in the next.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from detectron2.utils import comm


class Interrupted(BaseException):
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
        if self._signum is None:
            self._signum = signum
            if comm.is_main_process():
                what = "saving after this iteration; a second Ctrl-C leaves at once"
                print(f"{os.path.basename(sys.argv[0])}: {what}", file=sys.stderr)

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
