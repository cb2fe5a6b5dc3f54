"""The processes of a training: how they start, and how signals stop them.

Schedulers send SIGTERM some seconds before they kill; a terminal sends SIGINT to every process of a
command. Either way the training finishes the iteration, saves and leaves. Its processes stop after
the same iteration, as each waits for the others in the next.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .console import UserError, exit_status

Main = Callable[[CfgNode], int]


def launch_training(
    main: Main,
    cfg: CfgNode,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> int:
    """Call ``main(cfg)``, which returns an exit status, in every process of the training. Under
    torchrun this is one of the processes already. Else Detectron2's ``launch``, which takes the
    other arguments, starts ``num_gpus`` on this machine; on CPU they are processes without a GPU.
    ``main`` is pickled, so it stands at the top of a module. UserError: both at once."""
    several = num_gpus * num_machines > 1
    if {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        if several:
            raise UserError("torchrun starts processes: leave out --num-gpus and --num-machines")
        return _run_under_torchrun(main, cfg)
    if not several:
        return main(cfg)
    if num_machines > 1 and dist_url == "auto":
        raise UserError("--num-machines needs --dist-url, such as tcp://FIRST_MACHINE:PORT")
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        # Where it sees a GPU, Detectron2 has the processes talk over NCCL, which cannot do CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    status = 0
    with _forward_to_children() as received:
        try:
            launch(_run_started, num_gpus, num_machines, machine_rank, dist_url, (main, cfg))
        except ProcessExitedException as error:
            # Which says why on stderr, or was still starting when the signal came
            if not received and error.exit_code < 0:
                raise
            status = error.exit_code
    return exit_status_of(received[0]) if received else status


def _run_under_torchrun(main: Main, cfg: CfgNode) -> int:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    _share_cores(cfg)
    status = main(cfg)
    torch.distributed.destroy_process_group()
    return status


def _run_started(main: Main, cfg: CfgNode) -> None:
    parent = os.getppid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:  # It is dead; else Ctrl-C is left to it.
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    _share_cores(cfg)
    if status := exit_status(lambda: main(cfg)):
        raise SystemExit(status)


def _share_cores(cfg: CfgNode) -> None:
    """Processes that share cores stall each other if each brings a thread for every core."""
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        share = len(os.sched_getaffinity(0)) // comm.get_local_size()
        torch.set_num_threads(max(1, share))


class Interrupted(KeyboardInterrupt):
    """Training stopped after a saved iteration, as a signal asked, or patience is over (None). No
    error, so no traceback."""

    def __init__(self, signum: int | None):
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

    def listen(self) -> contextlib.AbstractContextManager[None]:
        """Take note of the signals instead of dying of them. A handler of Ctrl-C that is not
        Python's own stays. Outside the main thread Python allows no handlers: no change."""
        ctrl_c_is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return _handlers([signal.SIGTERM, *[signal.SIGINT] * ctrl_c_is_free], self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a data worker that has not begun: its parent ends it
        if signum == signal.SIGINT:
            # The system's own reaction, which waits for no Python code
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_first, self._signum = self._signum is None, self._signum or signum
        self._raise_in_evaluation()
        if is_first and comm.is_main_process():
            what = "evaluation" if self._is_evaluating else "iteration, then saving"
            line = f"finishing this {what}; a second Ctrl-C leaves at once"
            # On a terminal the progress may stand there.
            print(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr)

    def _raise_in_evaluation(self) -> None:
        if self._is_evaluating and self._signum is not None and comm.get_world_size() == 1:
            raise Interrupted(self._signum)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Nothing has to be finished and saved: a signal raises :class:`Interrupted` at once. Of
        several processes each has to come to the end of its share, for which the others wait."""
        before, self._is_evaluating = self._is_evaluating, True
        try:
            self._raise_in_evaluation()
            yield
        finally:
            self._is_evaluating = before

    def agreed(self) -> int | None:
        """The signal that any of the processes got, the same in all; every process must call."""
        return next((x for x in comm.all_gather(self._signum) if x is not None), None)


@contextlib.contextmanager
def _forward_to_children() -> Iterator[list[int]]:
    """Tell the processes that this one starts to stop, by SIGTERM, whatever came; a second Ctrl-C
    kills them and leaves. Yields an empty list, into which the first signal is put."""
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


@contextlib.contextmanager
def _handlers(signals: Iterable[int], handle: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
