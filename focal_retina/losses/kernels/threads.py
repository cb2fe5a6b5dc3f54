"""Threads on which ATen runs serially.

ATen splits each operation over its threads and waits for all of them at its end. A chain of short
operations on blocks in the cache waits thousands of times, and where another process holds one of
the cores (a data loader does), each wait can last a time slice of some milliseconds. Here, threads
take whole blocks through the chain and wait for each other once.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def on_each_thread(work: Callable[[], Result]) -> list[Result]:
    """What ``work`` returns, called on as many threads at once as ATen has for this one.

    The caller's modes (autograd, autocast, inference) may or may not hold in it.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return [work()]
    pool = _serial_pool(num_threads)
    return [future.result() for future in [pool.submit(work) for _ in range(num_threads)]]


@functools.lru_cache(maxsize=1)
def _serial_pool(num_threads: int) -> ThreadPoolExecutor:
    all_started = threading.Barrier(num_threads)

    def start() -> None:
        # ATen keeps the number for each thread, and takes over the last one that was set anywhere
        # when a thread first asks. So this thread asks, sets its own, and the caller sets it back.
        torch.get_num_threads()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, "focal_retina_loss", initializer=start)
    for future in [pool.submit(int) for _ in range(num_threads)]:
        future.result()
    torch.set_num_threads(num_threads)
    return pool


# A forked child has the pool but not its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_serial_pool.cache_clear)
